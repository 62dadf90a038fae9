"""What endpoints depend on: the app's state, and short-lived caches of API keys and tenants' limits.

The caches spare a busy client a query per request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cachetools import TTLCache
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from rebase.settings import Settings
from rebase.store import api_keys as keys
from rebase.store.limits import Limits, load_limits
from rebase.store.scheduler import Scheduler
from rebase.store.store import Store
from service.group_commit import GroupCommitter
from service.metrics import Metrics
from service.rate_limit import LocalRateLimiter, RateLimiter, Throttle

KEY_CACHE_S = 10.0  # a revoked key, or outdated limits, remain in effect for at most this long
_MAX_ENTRIES = 10_000


class KeyCache:
    """Identities by the hash of their key; keys themselves are not kept. `ttl_s`: lifetime of an entry."""

    def __init__(self, ttl_s: float = KEY_CACHE_S) -> None:
        self._cache: TTLCache[str, keys.Identity] = TTLCache(_MAX_ENTRIES, ttl_s)

    async def identify(self, store: Store, key: str) -> keys.Identity | None:
        """The identity behind a key, even if expired or revoked; None for an unknown key. Raises Busy."""
        digest = keys.hash_key(key)
        identity = self._cache.get(digest)
        if identity is None:
            identity = await run_in_threadpool(keys.identify_key, store, key)
            if identity is not None:
                self._cache[digest] = identity
        return identity


class LimitsCache:
    """Limits of tenants, for callers without a key. `ttl_s`: lifetime of an entry."""

    def __init__(self, ttl_s: float = KEY_CACHE_S) -> None:
        self._cache: TTLCache[str, Limits] = TTLCache(_MAX_ENTRIES, ttl_s)

    async def get(self, store: Store, tenant: str) -> Limits:
        """The tenant's limits. Raises Busy."""
        limits = self._cache.get(tenant)
        if limits is None:
            limits = await run_in_threadpool(_load_tenant_limits, store, tenant)
            self._cache[tenant] = limits
        return limits


def _load_tenant_limits(store: Store, tenant: str) -> Limits:
    with store.db.read() as connection:
        return load_limits(connection, tenant, store.limits)


@dataclass(frozen=True, slots=True)
class EventIntervals:
    """Seconds between an event stream's looks at its job, and at the key that opened it."""

    poll_s: float = 0.5
    key_check_s: float = 10.0


@dataclass(frozen=True, slots=True)
class AppState:
    """Everything an endpoint may use."""

    settings: Settings
    store: Store
    scheduler: Scheduler
    metrics: Metrics
    migrations_head: str
    group_committer: GroupCommitter
    key_cache: KeyCache = field(default_factory=KeyCache)
    limits_cache: LimitsCache = field(default_factory=LimitsCache)
    event_intervals: EventIntervals = EventIntervals()
    rate_limiter: RateLimiter = field(default_factory=LocalRateLimiter)
    denial_throttle: Throttle = field(default_factory=lambda: Throttle(60.0))


async def _get_service(request: Request) -> AppState:
    service: AppState = request.app.state.service
    return service


ServiceDep = Annotated[AppState, Depends(_get_service)]
