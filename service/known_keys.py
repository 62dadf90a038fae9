"""A short memory for API keys and for tenants' limits, so that a busy client costs no query per request."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from rebase.store import api_keys as keys
from rebase.store.limits import Limits, load_limits
from rebase.store.store import Store

V = TypeVar("V")
_KNOWN_FOR_S = 10.0  # a revoked key works for at most this long, and so do limits that were changed
_MOST_KNOWN = 10_000


class _Memory(Generic[V]):
    """Values that were looked up a moment ago."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[V, float]] = OrderedDict()

    def recall(self, name: str) -> V | None:
        """The value, while it is fresh."""
        found = self._known.get(name)
        if found is not None and time.monotonic() < found[1]:
            return found[0]
        self._known.pop(name, None)
        return None

    def keep(self, name: str, value: V) -> None:
        """Remember it for a while."""
        self._known[name] = (value, time.monotonic() + _KNOWN_FOR_S)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)


class KnownKeys:
    """Keys by their hash; the keys themselves are not kept."""

    def __init__(self) -> None:
        self._memory: _Memory[keys.Identity] = _Memory()

    async def identify(self, store: Store, key: str) -> keys.Identity | None:
        """Whom the key stands for, ended or not; None for one that is unknown. Raises Busy."""
        digest = keys.hash_key(key)
        known = self._memory.recall(digest)
        if known is None:
            known = await run_in_threadpool(keys.identify_key, store, key)
            if known is not None:
                self._memory.keep(digest, known)
        return known


class KnownLimits:
    """Limits of tenants, for callers that bring no key."""

    def __init__(self) -> None:
        self._memory: _Memory[Limits] = _Memory()

    async def of(self, store: Store, tenant: str) -> Limits:
        """What the tenant may use. Raises Busy."""
        known = self._memory.recall(tenant)
        if known is None:
            known = await run_in_threadpool(_read, store, tenant)
            self._memory.keep(tenant, known)
        return known


def _read(store: Store, tenant: str) -> Limits:
    with store.db.read() as connection:
        return load_limits(connection, tenant, store.limits)
