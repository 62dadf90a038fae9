"""The job store: every read and every move of a job, as guarded SQL. `core.states` draws the machine."""

from __future__ import annotations

from core.jobs.base import PLAIN, Extras
from core.jobs.client_side import ClientSide
from core.jobs.keeper_side import KeeperSide, Swept
from core.jobs.pools_side import PoolPage, PoolRecord, PoolsSide, TenantPools
from core.jobs.reconcile_side import ReconcileSide
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
from core.jobs.release_records import (
    CampaignEntry,
    CampaignPage,
    CampaignRecord,
    Decided,
    Decision,
    Seen,
    SeenAs,
    SubscriptionPage,
    SubscriptionRecord,
    Tally,
)
from core.jobs.steering_side import SteeringSide
from core.jobs.submit import Order, Submitting, check_idempotency_key
from core.jobs.subscriptions_side import SubscriptionsSide
from core.jobs.worker_side import WorkerSide


class JobStore(PoolsSide, SubscriptionsSide, SteeringSide, ReconcileSide, ClientSide, WorkerSide, KeeperSide):
    """All of it: the service submits and uses pools, subscriptions, campaigns and jobs; workers settle and
    decide; the keeper relays, sweeps and asks for looks at the Hub."""


__all__ = [
    "PLAIN",
    "CampaignEntry",
    "CampaignPage",
    "CampaignRecord",
    "Claim",
    "ConversionKind",
    "Decided",
    "Decision",
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
    "Seen",
    "SeenAs",
    "Submitting",
    "SubscriptionPage",
    "SubscriptionRecord",
    "Swept",
    "Tally",
    "TenantPools",
    "check_idempotency_key",
]
