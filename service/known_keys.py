"""A short memory for API keys, so that a busy client costs no query per request."""

from __future__ import annotations

import time
from collections import OrderedDict

from starlette.concurrency import run_in_threadpool

from core import keys
from core.jobs import JobStore

_KNOWN_FOR_S = 10.0  # a revoked key works for at most this long
_MOST_KNOWN = 10_000


class KnownKeys:
    """Keys that were looked up a moment ago, by hash; the keys themselves are not kept."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()

    async def tenant_of(self, store: JobStore, key: str) -> str | None:
        """The key's tenant; None for a key that is unknown or revoked. Raises Busy."""
        digest, now = keys.digest(key), time.monotonic()
        tenant, until = self._known.get(digest, ("", 0.0))
        if now < until:
            return tenant
        self._known.pop(digest, None)
        found = await run_in_threadpool(keys.tenant_of, store, key)
        if found is not None:
            self._known[digest] = (found, now + _KNOWN_FOR_S)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return found
