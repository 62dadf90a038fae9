"""The service's answers about subscriptions and campaigns, as far as a client reads them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from rebase.client.models import ResponseModel
from rebase.errors import PublicError
from rebase.schemas.states import IDLE_CAMPAIGN_STATES


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
    """Why a release made no campaign."""

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
        """Nothing more happens by itself."""
        return self.state in {state.value for state in IDLE_CAMPAIGN_STATES}


class CampaignList(ResponseModel):
    """One page of `GET /campaigns`; `next_cursor` is None on the last page."""

    campaigns: list[Campaign] = Field(default_factory=list)
    next_cursor: str | None = None


class AdapterOutput(ResponseModel):
    """Where a moved adapter is."""

    repo_id: str
    commit: str
    url: str = ""
    pull_request: str | None = None


class AdapterReport(ResponseModel):
    """What became of one adapter."""

    adapter: str
    revision: str = "main"
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
