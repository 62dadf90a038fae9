"""What the job store hands out: plain values, detached from the database."""

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
)  # the service's own work: no client is shown these
JobRequest = ConversionRequest | PoolRequest | ReleaseTask | ReconcileTask
_REQUEST_MODELS: dict[Kind, type[JobRequest]] = {
    "convert": ConversionRequest,
    "precheck": ConversionRequest,
    "pool": PoolRequest,
    "release": ReleaseTask,
    "reconcile": ReconcileTask,
}


def get_request_model(kind: Kind) -> type[JobRequest]:
    """What `jobs.request` holds for this kind."""
    return _REQUEST_MODELS[kind]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as its owner may see it. Once `done`, exactly one of `result` and `error` is set."""

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
        """No move comes by itself any more."""
        return self.state in TERMINAL

    @classmethod
    def from_row(cls, row: Row[Any]) -> JobRecord:
        """Take the columns that a record has from a row of `jobs`."""
        values = row._mapping
        fields = {name: values[name] for name in cls.__slots__}
        return cls(**{**fields, "state": JobState(fields["state"])})


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first, and the cursor of those after them (None: there are none)."""

    jobs: tuple[JobRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One row of a job's history. `id` rises."""

    id: int
    at: datetime
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayerSimilarityMatrix:
    """similarity[source layer][target layer]; `layers`: target layer → source layer. Both empty: no map."""

    similarity: Sequence[Sequence[float]] = ()
    layer_map: Sequence[int] = ()


NO_LAYER_SIMILARITY = LayerSimilarityMatrix()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One figure of an evaluation: of which model, with its 95 % interval and over how many examples; or why
    there is none."""

    subject: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What a run measured: one summary, one object per target site, how alike the layers are, and the figures
    of an evaluation."""

    verdict: str | None
    summary: dict[str, Any] | None
    sites: tuple[dict[str, Any], ...]
    layer_similarity: LayerSimilarityMatrix = NO_LAYER_SIMILARITY
    metrics: tuple[MetricRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's hold on a job; `attempt` and `owner` fence every write that it makes."""

    job_id: str
    tenant_id: str
    kind: Kind
    request: JobRequest
    attempt: int
    owner: str


# Subscriptions, releases and campaigns as the store hands them out.


@dataclass(frozen=True, slots=True)
class SubscriptionRecord:
    """A subscription as its owner may see it."""

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
        """The request as it was sent."""
        return SubscriptionRequest.model_validate(self.request)


@dataclass(frozen=True, slots=True)
class SubscriptionPage:
    """Some subscriptions, newest first, and the cursor of those after them."""

    subscriptions: tuple[SubscriptionRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """A repo's main branch at a commit, as a webhook told it or a look at the Hub found it."""

    repo_id: str
    ref: str
    sha: str
    seen_by: Literal["webhook", "poll"]
    webhook_id: str | None = None
    hub_repo_id: str | None = None
    created_at: datetime | None = None  # of the repo, where that is known
    new_repo: bool = False  # the repo was made; `sha` is what it begins with


RecordResult = Literal["recorded", "duplicate", "own_push", "no_subscription"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What a worker made of a release: `waiting`, `refused` with reasons, or `open` with jobs to queue.

    `outputs`: position of an adapter → the repo it goes to; an adapter is there or in `left_out`.
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
    """The campaign that stands now, and whether this decision made or changed it."""

    campaign_id: str | None
    outcome: DecisionOutcome


@dataclass(frozen=True, slots=True)
class Tally:
    """A campaign's jobs of one stage: how many in each state, and how many with each verdict."""

    states: Mapping[JobState, int] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.states.values())

    @property
    def done(self) -> int:
        """Those that have ended."""
        return sum(count for state, count in self.states.items() if state in TERMINAL)


@dataclass(frozen=True, slots=True)
class CampaignRecord:
    """A campaign as its owner may see it."""

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
        """The subscription's request as it was when the campaign began."""
        return SubscriptionRequest.model_validate(self.request)


@dataclass(frozen=True, slots=True)
class CampaignPage:
    """Some campaigns, newest first, and the cursor of those after them."""

    campaigns: tuple[CampaignRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class CampaignEntry:
    """One job of a campaign, with the figures of its evaluation that matter to a reader."""

    stage: Stage
    position: int
    job: JobRecord
    metrics: tuple[MetricRow, ...] = ()
