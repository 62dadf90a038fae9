"""What a running service keeps: made once by `create_app`, reached by endpoints as a dependency."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from rebase.settings import Settings
from rebase.store.scheduler import Scheduler
from rebase.store.store import Store
from service.intake import Intake
from service.known_keys import KnownKeys, KnownLimits
from service.metrics import Metrics
from service.rates import LocalRates, Rates, Seldom


@dataclass(frozen=True, slots=True)
class Service:
    """Everything an endpoint may need."""

    settings: Settings
    store: Store
    keeper: Scheduler
    metrics: Metrics
    migrations_head: str
    intake: Intake
    known_keys: KnownKeys = field(default_factory=KnownKeys)
    known_limits: KnownLimits = field(default_factory=KnownLimits)
    rates: Rates = field(default_factory=LocalRates)
    denials: Seldom = field(default_factory=lambda: Seldom(60.0))


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
