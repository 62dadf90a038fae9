"""The job store: every read and every move of a job, as guarded SQL. `core.states` draws the machine."""

from __future__ import annotations

from core.jobs.base import NO_CONTEXT, SubmissionContext
from core.jobs.client_side import JobRepository
from core.jobs.keeper_side import OutboxRepository, ReapResult
from core.jobs.pools_side import AnchorPoolRepository, PoolPage, PoolRecord, ScopedAnchorPools
from core.jobs.reconcile_side import ReleasePolling
from core.jobs.records import (
    Claim,
    ConversionKind,
    Diagnostics,
    EventRecord,
    JobPage,
    JobRecord,
    JobRequest,
    Kind,
    LayerSimilarityMatrix,
    MetricRow,
)
from core.jobs.release_records import (
    CampaignEntry,
    CampaignPage,
    CampaignRecord,
    Decision,
    DecisionResult,
    RecordResult,
    ReleaseEvent,
    SubscriptionPage,
    SubscriptionRecord,
    Tally,
)
from core.jobs.steering_side import CampaignControl
from core.jobs.submit import JobSubmission, Submission, check_idempotency_key
from core.jobs.subscriptions_side import SubscriptionRepository
from core.jobs.worker_side import ClaimedJobs


class JobStore(
    AnchorPoolRepository,
    SubscriptionRepository,
    CampaignControl,
    ReleasePolling,
    JobRepository,
    ClaimedJobs,
    OutboxRepository,
):
    """All of it: the service submits and uses pools, subscriptions, campaigns and jobs; workers settle and
    decide; the keeper relays, sweeps and asks for looks at the Hub."""


__all__ = [
    "NO_CONTEXT",
    "CampaignEntry",
    "CampaignPage",
    "CampaignRecord",
    "Claim",
    "ConversionKind",
    "Decision",
    "DecisionResult",
    "Diagnostics",
    "EventRecord",
    "JobPage",
    "JobRecord",
    "JobRequest",
    "JobStore",
    "JobSubmission",
    "Kind",
    "LayerSimilarityMatrix",
    "MetricRow",
    "PoolPage",
    "PoolRecord",
    "ReapResult",
    "RecordResult",
    "ReleaseEvent",
    "ScopedAnchorPools",
    "Submission",
    "SubmissionContext",
    "SubscriptionPage",
    "SubscriptionRecord",
    "Tally",
    "check_idempotency_key",
]
