"""The job store: every read and every move of a job, as guarded SQL. `core.states` draws the machine."""

from __future__ import annotations

from core.jobs.client_side import ClientSide
from core.jobs.keeper_side import KeeperSide, Swept
from core.jobs.records import Claim, Diagnostics, EventRecord, JobPage, JobRecord, Kind
from core.jobs.submit import Submitting, check_idempotency_key
from core.jobs.worker_side import WorkerSide


class JobStore(Submitting, ClientSide, WorkerSide, KeeperSide):
    """All of it: the service uses the first two sides, workers the third, the keeper the last."""


__all__ = [
    "Claim",
    "Diagnostics",
    "EventRecord",
    "JobPage",
    "JobRecord",
    "JobStore",
    "Kind",
    "Swept",
    "check_idempotency_key",
]
