"""The job store's return values: plain dataclasses, detached from the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row

from rebase.schemas.anchor_pools import PoolRequest
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import TERMINAL, CampaignDbState, CampaignState, JobState, Kind
from rebase.schemas.subscriptions import ReconcileTask, ReleaseTask, Stage, SubscriptionRequest

INTERNAL_KINDS: tuple[Kind, ...] = (
    "release",
    "reconcile",
)  # internal jobs, never shown to clients
JobRequest = ConversionRequest | PoolRequest | ReleaseTask | ReconcileTask
_REQUEST_MODELS: dict[Kind, type[JobRequest]] = {
    "convert": ConversionRequest,
    "precheck": ConversionRequest,
    "pool": PoolRequest,
    "release": ReleaseTask,
    "reconcile": ReconcileTask,
}


def get_request_model(kind: Kind) -> type[JobRequest]:
    """The model of `jobs.request` for this kind."""
    return _REQUEST_MODELS[kind]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as shown to its owner. Once `is_done`, exactly one of `result` and `error` is set."""

    id: str
    tenant_id: str
    kind: Kind
    state: JobState
    request: dict[str, Any]
    attempt: int
    attempt_limit: int
    cancel_requested: bool
    not_before: datetime | None
    phase: str | None
    progress_done: int | None
    progress_total: int | None
    progress_unit: str | None
    progress_eta_s: float | None
    adapter_sha: str | None
    source_repo: str | None
    source_sha: str | None
    target_sha: str | None
    output_repo: str | None
    verdict: str | None
    diagnostics: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    version: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def is_done(self) -> bool:
        """Whether the state is terminal: no further transition happens by itself."""
        return self.state in TERMINAL

    @classmethod
    def from_row(cls, row: Row[Any]) -> JobRecord:
        """Build from the columns of a row of `jobs`."""
        values = row._mapping
        fields = {name: values[name] for name in cls.__slots__}
        return cls(**{**fields, "state": JobState(fields["state"])})


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first, and the cursor of the next page (None: this is the last one)."""

    jobs: tuple[JobRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event of a job's history. `id` is increasing."""

    id: int
    at: datetime
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayerSimilarityMatrix:
    """similarity[source layer][target layer]; `layer_map`: target layer → source layer. Both may be empty."""

    similarity: Sequence[Sequence[float]] = ()
    layer_map: Sequence[int] = ()


NO_LAYER_SIMILARITY = LayerSimilarityMatrix()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of one model in an evaluation, with its 95 % interval and number of examples; or the reason
    why it is missing."""

    subject: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a run measured: a summary, one object per target site, the layer similarities, and the metrics of
    an evaluation."""

    verdict: str | None
    summary: dict[str, Any] | None
    sites: tuple[dict[str, Any], ...]
    layer_similarity: LayerSimilarityMatrix = NO_LAYER_SIMILARITY
    metrics: tuple[MetricRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's claim on a job; `attempt` and `owner` fence every write of the worker."""

    job_id: str
    tenant_id: str
    kind: Kind
    request: JobRequest
    attempt: int
    owner: str


# Subscriptions, releases and campaigns as returned by the store.


@dataclass(frozen=True, slots=True)
class SubscriptionRecord:
    """A subscription as shown to its owner."""

    id: str
    tenant_id: str
    owner: str
    request: dict[str, Any]
    paused: bool
    since: datetime
    looked_at: datetime
    created_at: datetime

    @property
    def spec(self) -> SubscriptionRequest:
        """The request as submitted."""
        return SubscriptionRequest.model_validate(self.request)


@dataclass(frozen=True, slots=True)
class SubscriptionPage:
    """A page of subscriptions, newest first, and the cursor of the next page."""

    subscriptions: tuple[SubscriptionRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """A repo's main branch at a commit, as reported by a webhook or found by polling the Hub."""

    repo_id: str
    ref: str
    sha: str
    seen_by: Literal["webhook", "poll"]
    webhook_id: str | None = None
    hub_repo_id: str | None = None
    created_at: datetime | None = None  # creation date of the repo, if known
    new_repo: bool = False  # the repo was just created; `sha` is its first commit


RecordResult = Literal["recorded", "duplicate", "own_push", "no_subscription"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A worker's decision on a release: `waiting`, `refused` with reasons, or `open` with jobs to queue.

    `outputs`: position of an adapter → its output repo; every adapter is either there or in `left_out`.
    """

    state: CampaignDbState
    sha: str
    reasons: Sequence[Mapping[str, str]] = ()
    facts: Mapping[str, Any] | None = None
    outputs: Mapping[int, str] = field(default_factory=dict)
    left_out: Sequence[Mapping[str, Any]] = ()


DecisionOutcome = Literal["waiting", "refused", "open", "handled", "unsubscribed"]


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """The resulting campaign, and whether this decision created or changed it."""

    campaign_id: str | None
    outcome: DecisionOutcome


@dataclass(frozen=True, slots=True)
class Tally:
    """The jobs of one stage of a campaign: how many in each state, and how many with each verdict."""

    states: Mapping[JobState, int] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of jobs."""
        return sum(self.states.values())

    @property
    def done(self) -> int:
        """Number of jobs that have ended."""
        return sum(count for state, count in self.states.items() if state in TERMINAL)


@dataclass(frozen=True, slots=True)
class CampaignRecord:
    """A campaign as shown to its owner."""

    id: str
    subscription_id: str | None
    repo_id: str
    number: int
    sha: str
    state: CampaignState
    dry_run: bool
    approved_at: datetime | None
    request: dict[str, Any]
    decision: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    tallies: Mapping[Stage, Tally] = field(default_factory=dict)

    @property
    def spec(self) -> SubscriptionRequest:
        """The subscription's request as it was when the campaign was created."""
        return SubscriptionRequest.model_validate(self.request)


@dataclass(frozen=True, slots=True)
class CampaignPage:
    """A page of campaigns, newest first, and the cursor of the next page."""

    campaigns: tuple[CampaignRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class CampaignEntry:
    """One job of a campaign, with the evaluation metrics shown in reports."""

    stage: Stage
    position: int
    job: JobRecord
    metrics: tuple[MetricRow, ...] = ()
