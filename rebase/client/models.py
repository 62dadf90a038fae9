"""The service's responses, as far as the client needs them. Unknown fields are kept, not rejected."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rebase.errors import PublicError
from rebase.schemas.states import IDLE_CAMPAIGN_STATES, JobState


class ResponseModel(BaseModel):
    """Base class of all responses."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Progress(ResponseModel):
    """Progress within the current phase; `total` is None while unknown, `eta_s` is in seconds."""

    done: int = 0
    total: int | None = None
    unit: str | None = None
    eta_s: float | None = None


class Job(ResponseModel):
    """`GET /jobs/{id}`. When `done`, exactly one of `result` and `error` is set."""

    id: str
    kind: str
    status: str
    done: bool
    phase: str | None = None
    progress: Progress | None = None
    verdict: str | None = None
    result: dict[str, Any] | None = None
    error: PublicError | None = None
    created_at: datetime | None = None
    request: dict[str, Any] = Field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether the job ended successfully."""
        return self.status == JobState.SUCCEEDED.value


class JobList(ResponseModel):
    """One page of `GET /jobs`, newest first; `next_cursor` is None on the last page."""

    jobs: list[Job] = Field(default_factory=list)
    next_cursor: str | None = None


class Repo(ResponseModel):
    """A repo at a branch, tag or commit."""

    repo_id: str
    revision: str = "main"
    subfolder: str | None = None


class Anchor(ResponseModel):
    """One task's adapters on the two bases of a pool."""

    source: Repo
    target: Repo
    domain: str = ""


class AnchorPool(ResponseModel):
    """`GET /anchor-pools/{id}`. Once `ready`, every revision in it is pinned to a commit; once `invalid`,
    `error` is set."""

    id: str
    name: str | None = None
    state: str
    source: Repo
    target: Repo
    anchor_count: int
    anchors: tuple[Anchor, ...] = ()
    sites: int | None = None
    warnings: tuple[str, ...] = ()
    measurements: dict[str, float] = Field(default_factory=dict)
    error: PublicError | None = None
    created_at: datetime | None = None


class AnchorPoolList(ResponseModel):
    """One page of `GET /anchor-pools`, newest first; `next_cursor` is None on the last page."""

    pools: list[AnchorPool] = Field(default_factory=list)
    next_cursor: str | None = None


class MethodInfo(ResponseModel):
    """One entry of `GET /methods`: `parameters` is a JSON schema."""

    name: str
    summary: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)


class Event(ResponseModel):
    """One server-sent event of a job; send `id` as `Last-Event-ID` to resume after it."""

    id: int
    type: str
    data: dict[str, Any]


class Attempt(ResponseModel):
    """One attempt at a delivery; without `reason` it was accepted."""

    number: int
    at: datetime
    status: int | None = None
    reason: str | None = None
    detail: str | None = None
    duration_ms: int | None = None


class Delivery(ResponseModel):
    """`GET /deliveries/{id}`: one callback; `id` is its `webhook-id`."""

    id: str
    job_id: str
    event: str
    url: str
    state: str
    attempts: int = 0
    next_attempt_at: datetime | None = None
    created_at: datetime | None = None
    payload: dict[str, Any] = Field(default_factory=dict)
    log: tuple[Attempt, ...] = ()


class DeliveryList(ResponseModel):
    """One page of `GET /deliveries`, newest first; `next_cursor` is None on the last page."""

    deliveries: list[Delivery] = Field(default_factory=list)
    next_cursor: str | None = None


class SigningSecret(ResponseModel):
    """`secret` is set only in the response that created it."""

    id: str
    created_at: datetime | None = None
    retires_at: datetime | None = None
    secret: str | None = Field(default=None, repr=False)


class SigningSecretList(ResponseModel):
    """`GET /callback-secrets`: the secrets that currently sign, newest first."""

    secrets: list[SigningSecret] = Field(default_factory=list)


class Subscription(ResponseModel):
    """`GET /subscriptions/{id}`."""

    id: str
    name: str | None = None
    bases: str | None = None
    successors_of: str | None = None
    adapter_count: int = 0
    paused: bool = False
    since: datetime | None = None
    created_at: datetime | None = None
    request: dict[str, Any] = Field(default_factory=dict)


class SubscriptionList(ResponseModel):
    """One page of `GET /subscriptions`; `next_cursor` is None on the last page."""

    subscriptions: list[Subscription] = Field(default_factory=list)
    next_cursor: str | None = None


class CampaignStage(ResponseModel):
    """The jobs of one stage of a campaign."""

    total: int = 0
    done: int = 0
    states: dict[str, int] = Field(default_factory=dict)
    verdicts: dict[str, int] = Field(default_factory=dict)


class CampaignReason(ResponseModel):
    """Why a release started no campaign."""

    code: str
    message: str


class Campaign(ResponseModel):
    """`GET /campaigns/{id}`."""

    id: str
    state: str
    subscription_id: str | None = None
    base: str
    revision: str = ""
    number: int = 1
    dry_run: bool = False
    reasons: tuple[CampaignReason, ...] = ()
    adapter_count: int = 0
    left_out: int = 0
    stages: dict[str, CampaignStage] = Field(default_factory=dict)
    created_at: datetime | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing more happens without user action."""
        return self.state in {state.value for state in IDLE_CAMPAIGN_STATES}


class CampaignList(ResponseModel):
    """One page of `GET /campaigns`; `next_cursor` is None on the last page."""

    campaigns: list[Campaign] = Field(default_factory=list)
    next_cursor: str | None = None


class AdapterOutput(ResponseModel):
    """Where a transferred adapter was published."""

    repo_id: str
    commit: str
    url: str = ""
    pull_request: str | None = None


class AdapterReport(ResponseModel):
    """The outcome for one adapter."""

    adapter: str
    revision: str = "main"
    subfolder: str | None = None
    outcome: str
    job_id: str | None = None
    verdict: str | None = None
    why: tuple[str, ...] = ()
    method: dict[str, Any] | None = None
    output: AdapterOutput | None = None
    planned_output: str | None = None
    error: PublicError | None = None


class CampaignReport(ResponseModel):
    """`GET /campaigns/{id}/report`; `counts`: adapters by outcome."""

    campaign: Campaign
    counts: dict[str, int] = Field(default_factory=dict)
    adapters: list[AdapterReport] = Field(default_factory=list)
