"""The client's methods for anchor pools, callbacks, subscriptions and campaigns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from rebase.client.errors import ServiceError, ServiceUnreachable
from rebase.client.models import (
    AnchorPool,
    AnchorPoolList,
    Campaign,
    CampaignList,
    CampaignReport,
    Delivery,
    DeliveryList,
    SigningSecret,
    SigningSecretList,
    Subscription,
    SubscriptionList,
)
from rebase.client.transport import Transport, to_path_segment
from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.subscriptions import SubscriptionRequest


class PoolEndpoints(Transport):
    """One method per endpoint. A pool has the same id as the job that registers it, so `wait` accepts it."""

    def register_pool(
        self, request: PoolRequest | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> AnchorPool:
        """`POST /anchor-pools`; returns the pool as accepted. `request`: a model, or the JSON object of the
        API."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = request
        if isinstance(request, PoolRequest):
            body = request.model_dump(mode="json", exclude_unset=True)
        return self._parse(AnchorPool, self._request("POST", "/anchor-pools", json=body, headers=headers))

    def get_pool(self, pool_id: str) -> AnchorPool:
        """`GET /anchor-pools/{id}`."""
        return self._parse(AnchorPool, self._request("GET", _pool_path(pool_id)))

    def list_pools(self, *, source: str | None = None, target: str | None = None) -> Iterator[AnchorPool]:
        """`GET /anchor-pools`, newest first, page after page; `source` and `target` are repo ids."""
        filters = {"source": source, "target": target}
        params = {key: value for key, value in filters.items() if value is not None}
        while True:
            page = self._parse(AnchorPoolList, self._request("GET", "/anchor-pools", params=params))
            yield from page.pools
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def delete_pool(self, pool_id: str) -> None:
        """`DELETE /anchor-pools/{id}`."""
        self._request("DELETE", _pool_path(pool_id))


def _pool_path(pool_id: str) -> str:
    return f"/anchor-pools/{to_path_segment(pool_id, 'an anchor pool')}"


class CallbackEndpoints(Transport):
    """One method per endpoint."""

    def list_deliveries(self, *, state: str | None = None) -> Iterator[Delivery]:
        """`GET /deliveries`, newest first, page after page."""
        params = {} if state is None else {"state": state}
        while True:
            page = self._parse(DeliveryList, self._request("GET", "/deliveries", params=params))
            yield from page.deliveries
            if page.next_cursor is None:
                return
            params["cursor"] = page.next_cursor

    def list_job_deliveries(self, job_id: str) -> list[Delivery]:
        """`GET /jobs/{id}/deliveries`, oldest first."""
        response = self._request("GET", f"/jobs/{to_path_segment(job_id)}/deliveries")
        return self._parse(DeliveryList, response).deliveries

    def get_delivery(self, delivery_id: str) -> Delivery:
        """`GET /deliveries/{id}`."""
        return self._parse(Delivery, self._request("GET", _delivery_path(delivery_id)))

    def replay_delivery(self, delivery_id: str) -> Delivery:
        """`POST /deliveries/{id}/replay`: send it again, under the same id."""
        return self._parse(Delivery, self._request("POST", f"{_delivery_path(delivery_id)}/replay"))

    def list_signing_secrets(self) -> list[SigningSecret]:
        """`GET /callback-secrets`: ids and dates only."""
        return self._parse(SigningSecretList, self._request("GET", "/callback-secrets")).secrets

    def rotate_signing_secret(self, *, overlap_s: int | None = None) -> SigningSecret:
        """`POST /callback-secrets`: a new secret, which only this response contains."""
        body = {} if overlap_s is None else {"overlap_s": overlap_s}
        return self._parse(SigningSecret, self._request("POST", "/callback-secrets", json=body))


def _delivery_path(delivery_id: str) -> str:
    return f"/deliveries/{to_path_segment(delivery_id, 'a delivery')}"


CampaignAction = Literal["pause", "resume", "cancel", "retry", "approve"]
_POLL_S = 1.0
_MAX_OUTAGE_S = 30.0


class ReleaseEndpoints(Transport):
    """One method per endpoint; every call raises ServiceError or ServiceUnreachable."""

    def subscribe(self, request: SubscriptionRequest | Mapping[str, Any]) -> Subscription:
        """`POST /subscriptions`; repeating the same request returns the existing subscription."""
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
        """`PATCH /subscriptions/{id}`: pause or resume."""
        response = self._request("PATCH", _subscription_path(subscription_id), json={"paused": paused})
        return self._parse(Subscription, response)

    def unsubscribe(self, subscription_id: str) -> None:
        """`DELETE /subscriptions/{id}`; its campaigns are kept."""
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
        """The same report as an HTML page."""
        path = f"{_campaign_path(campaign_id)}/report"
        return self._request("GET", path, params={"format": "html"}).text

    def wait_for_campaign(
        self, campaign_id: str, on_update: Callable[[Campaign], None] | None = None
    ) -> Campaign:
        """Poll until the campaign is idle; short outages of the service are tolerated."""
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
