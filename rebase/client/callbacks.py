"""The client's calls about callbacks."""

from __future__ import annotations

from collections.abc import Iterator

from rebase.client.models import Delivery, DeliveryList, SigningSecret, SigningSecretList
from rebase.client.wire import Transport, to_path_segment


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
        """`POST /deliveries/{id}/replay`: once more, under the same id."""
        return self._parse(Delivery, self._request("POST", f"{_delivery_path(delivery_id)}/replay"))

    def list_signing_secrets(self) -> list[SigningSecret]:
        """`GET /callback-secrets`: ids and dates."""
        return self._parse(SigningSecretList, self._request("GET", "/callback-secrets")).secrets

    def rotate_signing_secret(self, *, overlap_s: int | None = None) -> SigningSecret:
        """`POST /callback-secrets`: a new secret, in this answer only."""
        body = {} if overlap_s is None else {"overlap_s": overlap_s}
        return self._parse(SigningSecret, self._request("POST", "/callback-secrets", json=body))


def _delivery_path(delivery_id: str) -> str:
    return f"/deliveries/{to_path_segment(delivery_id, 'a delivery')}"
