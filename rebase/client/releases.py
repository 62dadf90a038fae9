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
from rebase.client.wire import Transport, to_path_segment
from rebase.schemas.subscriptions import SubscriptionRequest

CampaignAction = Literal["pause", "resume", "cancel", "retry", "approve"]
_POLL_S = 1.0
_MAX_OUTAGE_S = 30.0


class ReleaseEndpoints(Transport):
    """One method per endpoint; every call raises ServiceError or ServiceUnreachable."""

    def subscribe(self, request: SubscriptionRequest | Mapping[str, Any]) -> Subscription:
        """`POST /subscriptions`; the same request again gives the subscription that stands."""
        body = request
        if isinstance(request, SubscriptionRequest):
            body = request.model_dump(mode="json", exclude_unset=True)
        return self._parse(Subscription, self._request("POST", "/subscriptions", json=body))

    def get_subscription(self, subscription_id: str) -> Subscription:
        """`GET /subscriptions/{id}`."""
        return self._parse(Subscription, self._request("GET", _subscription_path(subscription_id)))

    def list_subscriptions(self) -> Iterator[Subscription]:
        """`GET /subscriptions`, newest first, page after page."""
        params: dict[str, str] = {}
        while True:
            page = self._parse(SubscriptionList, self._request("GET", "/subscriptions", params=params))
            yield from page.subscriptions
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def pause_subscription(self, subscription_id: str, paused: bool = True) -> Subscription:
        """`PATCH /subscriptions/{id}`: begin no campaign, or begin them again."""
        response = self._request("PATCH", _subscription_path(subscription_id), json={"paused": paused})
        return self._parse(Subscription, response)

    def unsubscribe(self, subscription_id: str) -> None:
        """`DELETE /subscriptions/{id}`; its campaigns stay."""
        self._request("DELETE", _subscription_path(subscription_id))

    def get_campaign(self, campaign_id: str) -> Campaign:
        """`GET /campaigns/{id}`."""
        return self._parse(Campaign, self._request("GET", _campaign_path(campaign_id)))

    def list_campaigns(
        self, *, state: str | None = None, subscription: str | None = None
    ) -> Iterator[Campaign]:
        """`GET /campaigns`, newest first, page after page."""
        filters = {"state": state, "subscription": subscription}
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self._parse(CampaignList, self._request("GET", "/campaigns", params=params))
            yield from page.campaigns
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def control_campaign(self, campaign_id: str, action: CampaignAction) -> Campaign:
        """`POST /campaigns/{id}/pause`, `resume`, `cancel`, `retry` or `approve`."""
        return self._parse(Campaign, self._request("POST", f"{_campaign_path(campaign_id)}/{action}"))

    def get_campaign_report(self, campaign_id: str) -> CampaignReport:
        """`GET /campaigns/{id}/report`."""
        path = f"{_campaign_path(campaign_id)}/report"
        return self._parse(CampaignReport, self._request("GET", path, params={"format": "json"}))

    def get_campaign_report_html(self, campaign_id: str) -> str:
        """The same report as a page to read in a browser."""
        path = f"{_campaign_path(campaign_id)}/report"
        return self._request("GET", path, params={"format": "html"}).text

    def wait_for_campaign(
        self, campaign_id: str, on_update: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """Wait until nothing more happens by itself; a service that is away for a moment is waited for."""
        previous_campaign: Campaign | None = None
        last_response_at = time.monotonic()
        while True:
            try:
                campaign = self.get_campaign(campaign_id)
            except (ServiceUnreachable, ServiceError) as exc:
                if not exc.error.retryable or time.monotonic() - last_response_at > _MAX_OUTAGE_S:
                    raise
                time.sleep(_POLL_S)
                continue
            last_response_at = time.monotonic()
            if on_update is not None and campaign != previous_campaign:
                on_update(campaign)
            if campaign.is_idle:
                return campaign
            previous_campaign = campaign
            time.sleep(_POLL_S)


def _subscription_path(subscription_id: str) -> str:
    return f"/subscriptions/{to_path_segment(subscription_id, 'a subscription')}"


def _campaign_path(campaign_id: str) -> str:
    return f"/campaigns/{to_path_segment(campaign_id, 'a campaign')}"
