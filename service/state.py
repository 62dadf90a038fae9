"""What a running service keeps: made once by `create_app`, reached by endpoints as a dependency."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from rebase.settings import Settings
from rebase.store.scheduler import Scheduler
from rebase.store.store import Store
from service.intake import GroupCommitter
from service.known_keys import KeyCache, LimitsCache
from service.metrics import Metrics
from service.rates import LocalRateLimiter, RateLimiter, Throttle


@dataclass(frozen=True, slots=True)
class AppState:
    """Everything an endpoint may need."""

    settings: Settings
    store: Store
    scheduler: Scheduler
    metrics: Metrics
    migrations_head: str
    group_committer: GroupCommitter
    key_cache: KeyCache = field(default_factory=KeyCache)
    limits_cache: LimitsCache = field(default_factory=LimitsCache)
    rate_limiter: RateLimiter = field(default_factory=LocalRateLimiter)
    denial_throttle: Throttle = field(default_factory=lambda: Throttle(60.0))


async def _get_service(request: Request) -> AppState:
    service: AppState = request.app.state.service
    return service


ServiceDep = Annotated[AppState, Depends(_get_service)]
