"""The client's calls about subscriptions and campaigns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from rebase.client.errors import ServiceError, ServiceUnreachable
from rebase.client.release_models import (
    Campaign,
    CampaignList,
    CampaignReport,
    Subscription,
    SubscriptionList,
)
from rebase.client.wire import Wire, segment
from rebase.schemas.subscriptions import SubscriptionRequest

Move = Literal["pause", "resume", "cancel", "retry", "approve"]
_POLL_S = 1.0
_PATIENCE_S = 30.0


class ReleaseCalls(Wire):
    """One method per endpoint; every call raises ServiceError or ServiceUnreachable."""

    def subscribe(self, request: SubscriptionRequest | Mapping[str, Any]) -> Subscription:
        """`POST /subscriptions`; the same request again gives the subscription that stands."""
        body = request
        if isinstance(request, SubscriptionRequest):
            body = request.model_dump(mode="json", exclude_unset=True)
        return self._parse(Subscription, self._call("POST", "/subscriptions", json=body))

    def subscription(self, subscription_id: str) -> Subscription:
        """`GET /subscriptions/{id}`."""
        return self._parse(Subscription, self._call("GET", _subscription(subscription_id)))

    def subscriptions(self) -> Iterator[Subscription]:
        """`GET /subscriptions`, newest first, page after page."""
        params: dict[str, str] = {}
        while True:
            page = self._parse(SubscriptionList, self._call("GET", "/subscriptions", params=params))
            yield from page.subscriptions
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def pause_subscription(self, subscription_id: str, paused: bool = True) -> Subscription:
        """`PATCH /subscriptions/{id}`: begin no campaign, or begin them again."""
        answer = self._call("PATCH", _subscription(subscription_id), json={"paused": paused})
        return self._parse(Subscription, answer)

    def unsubscribe(self, subscription_id: str) -> None:
        """`DELETE /subscriptions/{id}`; its campaigns stay."""
        self._call("DELETE", _subscription(subscription_id))

    def campaign(self, campaign_id: str) -> Campaign:
        """`GET /campaigns/{id}`."""
        return self._parse(Campaign, self._call("GET", _campaign(campaign_id)))

    def campaigns(self, *, state: str | None = None, subscription: str | None = None) -> Iterator[Campaign]:
        """`GET /campaigns`, newest first, page after page."""
        filters = {"state": state, "subscription": subscription}
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self._parse(CampaignList, self._call("GET", "/campaigns", params=params))
            yield from page.campaigns
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def steer_campaign(self, campaign_id: str, move: Move) -> Campaign:
        """`POST /campaigns/{id}/pause`, `resume`, `cancel`, `retry` or `approve`."""
        return self._parse(Campaign, self._call("POST", f"{_campaign(campaign_id)}/{move}"))

    def campaign_report(self, campaign_id: str) -> CampaignReport:
        """`GET /campaigns/{id}/report`."""
        path = f"{_campaign(campaign_id)}/report"
        return self._parse(CampaignReport, self._call("GET", path, params={"format": "json"}))

    def campaign_page(self, campaign_id: str) -> str:
        """The same report as a page to read in a browser."""
        path = f"{_campaign(campaign_id)}/report"
        return self._call("GET", path, params={"format": "html"}).text

    def watch_campaign(
        self, campaign_id: str, on_update: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """Wait until nothing more happens by itself; a service that is away for a moment is waited for."""
        seen: Campaign | None = None
        answered = time.monotonic()
        while True:
            try:
                campaign = self.campaign(campaign_id)
            except (ServiceUnreachable, ServiceError) as exc:
                if not exc.error.retryable or time.monotonic() - answered > _PATIENCE_S:
                    raise
                time.sleep(_POLL_S)
                continue
            answered = time.monotonic()
            if on_update is not None and campaign != seen:
                on_update(campaign)
            if campaign.at_rest:
                return campaign
            seen = campaign
            time.sleep(_POLL_S)


def _subscription(subscription_id: str) -> str:
    return f"/subscriptions/{segment(subscription_id, 'a subscription')}"


def _campaign(campaign_id: str) -> str:
    return f"/campaigns/{segment(campaign_id, 'a campaign')}"
