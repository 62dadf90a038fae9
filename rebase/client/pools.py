"""The client's calls about anchor pools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rebase.client.models import AnchorPool, AnchorPoolList
from rebase.client.wire import Transport, to_path_segment
from rebase.schemas.anchor_pools import PoolRequest


class PoolEndpoints(Transport):
    """One method per endpoint. A pool's id is also that of the job which registers it: `wait` takes it."""

    def register_pool(
        self, request: PoolRequest | Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> AnchorPool:
        """`POST /anchor-pools`; the pool as accepted. The request as a model, or as the JSON object that the
        API takes."""
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
