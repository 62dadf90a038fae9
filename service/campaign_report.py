"""A campaign's report: what became of each adapter, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from rebase.errors import PublicError
from rebase.schemas.states import JobState
from rebase.store.records import CampaignEntry, CampaignRecord, JobRecord
from service.campaign_views import CampaignOut
from service.views import MetricOut

AdapterOutcome = Literal["moved", "passed", "retrain", "failed", "cancelled", "open", "left_out", "forgotten"]
_OUTCOME_BY_STATE: dict[JobState, AdapterOutcome] = {
    JobState.SUCCEEDED: "moved",
    JobState.REJECTED: "retrain",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}


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


def build_campaign_report(campaign: CampaignRecord, entries: Sequence[CampaignEntry]) -> CampaignReport:
    """Every adapter of the subscription in its order; its conversion where there is one, else its
    pre-check."""
    by_position: dict[int, CampaignEntry] = {}
    for entry in entries:  # pre-checks come before conversions
        by_position[entry.position] = entry
    left_out = {item["position"]: item for item in campaign.decision.get("left_out", [])}
    outputs = campaign.decision.get("outputs", {})
    adapters = []
    for position, adapter in enumerate(campaign.request["adapters"]):
        adapter_fields = {"adapter": adapter["repo_id"], "revision": adapter["revision"]}
        adapter_fields["planned_output"] = outputs.get(str(position))
        matched_entry = by_position.get(position)
        adapters.append(
            _build_job_report(matched_entry, adapter_fields)
            if matched_entry is not None
            else _build_jobless_report(left_out.get(position), adapter_fields)
        )
    counts: dict[str, int] = {}
    for one in adapters:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    return CampaignReport.model_construct(
        campaign=CampaignOut.from_record(campaign), counts=dict(sorted(counts.items())), adapters=adapters
    )


def _build_job_report(entry: CampaignEntry, adapter_fields: Mapping[str, Any]) -> AdapterReport:
    job = entry.job
    result = job.result if job.state is JobState.SUCCEEDED and job.result is not None else {}
    output = result.get("output")
    return AdapterReport.model_construct(
        **adapter_fields,
        outcome=_derive_outcome(entry),
        state=job.state.value,
        job_id=job.id,
        verdict=job.verdict,
        why=_collect_reasons(job, result),
        method=result.get("method"),
        output=AdapterOutput.model_construct(**output) if output is not None else None,
        measurements=result.get("measurements") or {},
        figures=[MetricOut.model_construct(**asdict(figure)) for figure in entry.metrics],
        error=PublicError.model_construct(**job.error) if job.is_done and job.error else None,
    )


def _build_jobless_report(
    left_out: Mapping[str, Any] | None, adapter_fields: Mapping[str, Any]
) -> AdapterReport:
    """An adapter without a job: over the budget, of a release that was not converted to, or deleted since."""
    had_job = left_out is None and adapter_fields["planned_output"] is not None
    return AdapterReport.model_construct(
        **adapter_fields,
        outcome="forgotten" if had_job else "left_out",
        state=None,
        job_id=None,
        verdict=None,
        why=[left_out["message"]] if left_out is not None else [],
        method=None,
        output=None,
        measurements={},
        figures=[],
        error=None,
    )


def _derive_outcome(entry: CampaignEntry) -> AdapterOutcome:
    job = entry.job
    outcome = _OUTCOME_BY_STATE.get(job.state, "open")
    if entry.stage == "precheck" and outcome == "moved":
        return "retrain" if job.verdict == "incompatible" else "passed"
    return outcome


def _collect_reasons(job: JobRecord, result: Mapping[str, Any]) -> list[str]:
    """The verdict's reasons, and what ended the job where something did."""
    measured = ((job.diagnostics or {}).get("precheck") or {}).get("reasons") or []
    messages = [str(reason.get("message", "")) for reason in result.get("reasons") or measured]
    error = (job.error or {}).get("message") if job.is_done else None
    return [*([str(error)] if error and error not in messages else []), *filter(None, messages)]
