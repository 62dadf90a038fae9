"""Responses about campaigns. As in `rebase.schemas.jobs`, stored data is not validated again."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from rebase.errors import PublicError
from rebase.schemas.jobs import MetricOut
from rebase.schemas.states import CampaignState

if TYPE_CHECKING:
    from rebase.store.records import CampaignPage, CampaignRecord, Tally


AdapterOutcome = Literal["moved", "passed", "retrain", "failed", "cancelled", "open", "left_out", "forgotten"]


class AdapterOutput(BaseModel):
    """Where a transferred adapter was published."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None


class AdapterReport(BaseModel):
    """One adapter of a campaign.

    `moved`: transferred and published · `passed`: a dry run's pre-check allows it · `retrain`: the verdict
    forbids a transfer, `why` lists the findings · `failed`: can be retried · `left_out`: no job was queued ·
    `open`: not finished · `forgotten`: its job was deleted after the retention period.
    """

    adapter: str
    revision: str
    subfolder: str | None = None
    outcome: AdapterOutcome
    state: str | None = Field(description="The state of its job.")
    job_id: str | None
    verdict: str | None
    why: list[str]
    method: dict[str, Any] | None
    output: AdapterOutput | None
    planned_output: str | None
    measurements: dict[str, float]
    figures: list[MetricOut]
    error: PublicError | None


class CampaignReport(BaseModel):
    """The full report. `counts`: adapters by outcome."""

    campaign: CampaignOut
    counts: dict[str, int]
    adapters: list[AdapterReport]


class ReasonOut(BaseModel):
    """Why a release started no campaign."""

    code: str
    message: str


class StageOut(BaseModel):
    """The jobs of one stage, `precheck` (of a dry run) or `convert`."""

    total: int
    done: int
    states: dict[str, int]
    verdicts: dict[str, int]

    @classmethod
    def from_tally(cls, tally: Tally) -> StageOut:
        """Build from a tally."""
        states = {state.value: count for state, count in sorted(tally.states.items())}
        verdicts = dict(sorted(tally.verdicts.items()))
        return cls.model_construct(total=tally.total, done=tally.done, states=states, verdicts=verdicts)


class CampaignOut(BaseModel):
    """A subscription's campaign for one release. If it is `refused` or `waiting`, `reasons` say why."""

    id: str
    state: CampaignState
    subscription_id: str | None = Field(description="Null once the subscription has been deleted.")
    base: str
    revision: str = Field(description="The commit of the release that adapters are converted to.")
    number: int = Field(description="Numbers the campaigns of one subscription for the same base.")
    dry_run: bool
    approved_at: datetime | None
    reasons: list[ReasonOut]
    facts: dict[str, Any] | None = Field(description="The Hub's metadata of the release.")
    adapter_count: int
    left_out: int = Field(description="Adapters without a job: over the limit or without a valid output.")
    stages: dict[str, StageOut]
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]

    @classmethod
    def from_record(cls, campaign: CampaignRecord) -> CampaignOut:
        """Build from a record."""
        decision, path = campaign.decision, f"/campaigns/{campaign.id}"
        facts = decision.get("facts")
        return cls.model_construct(
            id=campaign.id,
            state=campaign.state,
            subscription_id=campaign.subscription_id,
            base=campaign.repo_id,
            revision=campaign.sha,
            number=campaign.number,
            dry_run=campaign.dry_run,
            approved_at=campaign.approved_at,
            reasons=[ReasonOut.model_construct(**reason) for reason in decision.get("reasons", [])],
            facts={key: value for key, value in facts.items() if key != "content"} if facts else None,
            adapter_count=len(campaign.request["adapters"]),
            left_out=len(decision.get("left_out", [])),
            stages={stage: StageOut.from_tally(tally) for stage, tally in campaign.tallies.items()},
            created_at=campaign.created_at,
            updated_at=campaign.updated_at,
            links={"self": path, "report": f"{path}/report"},
        )


class CampaignListOut(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next page; null on the last one."""

    campaigns: list[CampaignOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: CampaignPage) -> CampaignListOut:
        """Build from a page of records."""
        campaigns = [CampaignOut.from_record(campaign) for campaign in page.campaigns]
        return cls.model_construct(campaigns=campaigns, next_cursor=page.next_cursor)
