"""The job store: every read and every move of a job, as guarded SQL. `core.states` draws the machine."""

from __future__ import annotations

from core.jobs.base import PLAIN, Extras
from core.jobs.client_side import ClientSide
from core.jobs.keeper_side import KeeperSide, Swept
from core.jobs.pools_side import PoolPage, PoolRecord, PoolsSide, TenantPools
from core.jobs.records import (
    Claim,
    ConversionKind,
    Diagnostics,
    EventRecord,
    FigureRow,
    JobPage,
    JobRecord,
    JobRequest,
    Kind,
    LayerRows,
)
from core.jobs.submit import Order, Submitting, check_idempotency_key
from core.jobs.worker_side import WorkerSide


class JobStore(PoolsSide, ClientSide, WorkerSide, KeeperSide):
    """All of it: the service submits and uses the first two sides, workers the third, the keeper the last."""


__all__ = [
    "PLAIN",
    "Claim",
    "ConversionKind",
    "Diagnostics",
    "EventRecord",
    "Extras",
    "FigureRow",
    "JobPage",
    "JobRecord",
    "JobRequest",
    "JobStore",
    "Kind",
    "LayerRows",
    "Order",
    "PoolPage",
    "PoolRecord",
    "Submitting",
    "Swept",
    "TenantPools",
    "check_idempotency_key",
]
