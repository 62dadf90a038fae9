"""Subscriptions, releases and campaigns as the store hands them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from core.jobs.records import JobRecord, MetricRow
from core.releases.plan import Stage
from core.releases.spec import SubscriptionRequest
from core.releases.states import CampaignDbState, CampaignState
from core.states import TERMINAL, JobState


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
