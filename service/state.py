"""What a running service keeps: made once by `create_app`, reached by endpoints as a dependency."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from core.jobs import JobStore
from core.keeper import Keeper
from core.settings import Settings
from service.intake import Intake
from service.known_keys import KnownKeys
from service.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Service:
    """Everything an endpoint may need."""

    settings: Settings
    store: JobStore
    keeper: Keeper
    metrics: Metrics
    migrations_head: str
    intake: Intake
    known_keys: KnownKeys = field(default_factory=KnownKeys)


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
