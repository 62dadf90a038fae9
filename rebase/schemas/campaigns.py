"""What the API shows of a campaign. As in `rebase.schemas.jobs`, nothing is validated again."""

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
    """Where a moved adapter is."""

    repo_id: str
    commit: str
    url: str
    pull_request: str | None


class AdapterReport(BaseModel):
    """One adapter of a campaign.

    `moved`: published · `passed`: a dry run's pre-check lets it through · `retrain`: the verdict is that it
    cannot be moved, `why` says the findings · `failed`: may be retried · `left_out`: it got no job · `open`:
    not done yet · `forgotten`: its job was deleted when its time was over.
    """

    adapter: str
    revision: str
    outcome: AdapterOutcome
    state: str | None = Field(description="Of its job.")
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
    """The whole of it. `counts`: adapters by outcome."""

    campaign: CampaignOut
    counts: dict[str, int]
    adapters: list[AdapterReport]


class ReasonOut(BaseModel):
    """Why a release made no campaign."""

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
        """The view of a tally."""
        states = {state.value: count for state, count in sorted(tally.states.items())}
        verdicts = dict(sorted(tally.verdicts.items()))
        return cls.model_construct(total=tally.total, done=tally.done, states=states, verdicts=verdicts)


class CampaignOut(BaseModel):
    """What a subscription made of a release. Of one that is `refused` or `waiting`, `reasons` say why."""

    id: str
    state: CampaignState
    subscription_id: str | None = Field(description="Null once the subscription was deleted.")
    base: str
    revision: str = Field(description="The commit of the release that the campaign converts to.")
    number: int = Field(description="Counts the campaigns of one subscription for one base.")
    dry_run: bool
    approved_at: datetime | None
    reasons: list[ReasonOut]
    facts: dict[str, Any] | None = Field(description="What the Hub says of the release.")
    adapter_count: int
    left_out: int = Field(description="Adapters without a job: over the budget, or without a legal name.")
    stages: dict[str, StageOut]
    created_at: datetime
    updated_at: datetime
    links: dict[str, str]

    @classmethod
    def from_record(cls, campaign: CampaignRecord) -> CampaignOut:
        """The view of a record."""
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
    """One page, newest first. Pass `next_cursor` as `cursor` for the next one; null on the last."""

    campaigns: list[CampaignOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: CampaignPage) -> CampaignListOut:
        """The view of a page."""
        campaigns = [CampaignOut.from_record(campaign) for campaign in page.campaigns]
        return cls.model_construct(campaigns=campaigns, next_cursor=page.next_cursor)
