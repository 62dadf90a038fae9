"""Method search: runs several methods on one adapter and selects the best on the request's examples.

Each candidate runs the full conversion up to the float32 update: its own evidence and pre-check, every site,
DARE, refinement. Only the best so far is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rebase.conversion.method_table import build_selection, explain_choice, make_nothing_better_error
from rebase.conversion.plan import ConversionPlan
from rebase.conversion.transfer import (
    ConversionContext,
    MethodRun,
    PrecheckOutcome,
    TransferResult,
    build_finding_row,
    postprocess,
    prepare_method,
    transfer_sites,
)
from rebase.errors import RebaseError, TransferError
from rebase.evaluation.prepare import PreparedEvaluation
from rebase.evaluation.scoring import Measure
from rebase.evaluation.selection import Choice, ExampleSplit, choose_best, split_examples
from rebase.methods.base_params import MethodParams
from rebase.methods.dare import dare_variants
from rebase.precheck.rules import find_dare_losses
from rebase.report.schema import FindingRow, Report
from rebase.report.selection import CandidateRow, Selection


@dataclass
class _Leaderboard:
    """Candidates tried so far. For each of `scores`: `measured_rows`, its index in `rows`; `eligible`,
    whether it may be kept."""

    baseline: tuple[float, ...]
    split: ExampleSplit
    allow_incompatible: bool
    rows: list[CandidateRow] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)
    measured_rows: list[int] = field(default_factory=list)
    eligible: list[bool] = field(default_factory=list)
    best: tuple[MethodRun, TransferResult] | None = None

    @property
    def choice(self) -> Choice:
        return choose_best(self.baseline, self.scores, self.split, self.eligible)

    def add_refused(self, params: MethodParams, reason: str, method_run: MethodRun | None = None) -> None:
        """Add a candidate that could not be measured, including its whole DARE sweep."""
        verdict = method_run.precheck_outcome.precheck.verdict if method_run is not None else None
        self.rows.append(CandidateRow(method=_dump_params(params), verdict=verdict, reason=reason))

    def add_scored(self, method_run: MethodRun, result: TransferResult, scores: tuple[float, ...]) -> None:
        """Add a measured candidate; its result is kept until another scores better."""
        outcome = method_run.precheck_outcome
        self.measured_rows.append(len(self.rows))
        self.rows.append(CandidateRow(method=_dump_params(outcome.params), verdict=outcome.precheck.verdict))
        self.scores.append(scores)
        self.eligible.append(self.allow_incompatible or outcome.precheck.verdict != "incompatible")
        if self.choice.best_index == len(self.scores) - 1:
            self.best = (method_run, result)


def _dump_params(params: MethodParams) -> dict[str, Any]:
    return params.model_dump(mode="json")


def search_methods(
    plan: ConversionPlan,
    context: ConversionContext,
    evaluation: PreparedEvaluation,
    default_run: MethodRun,
    report: Report,
) -> tuple[MethodRun, TransferResult, Selection]:
    """The highest-scoring candidate, its result, and the table of all candidates.

    `default_run`: the method chosen by rules, without measurement; `report`: reported together with the table
    if no candidate is worth publishing. Raises NothingBetter in that case.
    """
    measure = evaluation.measure
    assert measure is not None
    candidates = plan.candidates(has_pool=default_run.evidence.offer is not None)
    run_count = sum(len(dare_variants(params)) for params in candidates)
    evaluation.progress.start((1 + run_count) * len(evaluation.spec.examples))
    baseline = measure({})
    allow_incompatible = not plan.rejects_incompatible
    leaderboard = _Leaderboard(
        baseline, split_examples(len(baseline), evaluation.spec.seed), allow_incompatible
    )
    for index, params in enumerate(candidates):
        with _errors_at_candidate(plan, index):
            _run_candidate(plan, params, context, default_run, measure, leaderboard)
    table = build_selection(
        evaluation.spec,
        leaderboard.rows,
        leaderboard.measured_rows,
        leaderboard.baseline,
        leaderboard.scores,
        leaderboard.split,
        leaderboard.choice,
    )
    rejects_worse = plan.selects_by_evaluation and evaluation.spec.on_worse == "reject"
    if leaderboard.best is None or (rejects_worse and table.ending != "better"):
        context.progress.report_evidence(report.model_copy(update={"selection": table}))
        raise make_nothing_better_error(table, allows_training=getattr(plan.method, "train", True))
    method_run, result = leaderboard.best
    finding = FindingRow(code="measured", message=explain_choice(table), weight="info")
    return (
        replace(method_run, precheck_outcome=_add_findings(method_run.precheck_outcome, finding)),
        result,
        table,
    )


def _run_candidate(
    plan: ConversionPlan,
    params: MethodParams,
    context: ConversionContext,
    default_run: MethodRun,
    measure: Measure,
    leaderboard: _Leaderboard,
) -> None:
    """Run one candidate, once per drop rate of its DARE sweep; a refused one becomes a row with the
    reason."""
    is_listed = plan.method.listed_candidates is not None
    method_run: MethodRun | None = None
    try:
        method_run = prepare_method(
            plan.for_candidate(params), context, None if is_listed else default_run.evidence.offer
        )
        refusals = [
            row.message
            for row in method_run.precheck_outcome.precheck.reasons
            if row.code == "refused_by_method"
        ]
        if refusals:
            leaderboard.add_refused(params, refusals[0], method_run)
            return
        result = transfer_sites(method_run, context)
        for variant in dare_variants(params):
            candidate = replace(
                method_run, precheck_outcome=_with_dare_variant(method_run.precheck_outcome, variant)
            )
            variant_result = postprocess(result, candidate, context)
            leaderboard.add_scored(candidate, variant_result, measure(variant_result.deltas))
    except TransferError as refusal:
        leaderboard.add_refused(params, f"{refusal.message} {refusal.hint or ''}".strip(), method_run)


def _with_dare_variant(outcome: PrecheckOutcome, params: MethodParams) -> PrecheckOutcome:
    """The outcome for one variant of a DARE sweep, with DARE's findings added."""
    outcome = replace(outcome, params=params)
    if params.dare is None:
        return outcome
    outcome = _add_findings(outcome, *map(build_finding_row, find_dare_losses(params.dare)))
    if outcome.precheck.verdict != "compatible":
        return outcome
    return replace(outcome, precheck=outcome.precheck.model_copy(update={"verdict": "uncertain"}))


def _add_findings(outcome: PrecheckOutcome, *findings: FindingRow) -> PrecheckOutcome:
    reasons = [*outcome.precheck.reasons, *findings]
    return replace(outcome, precheck=outcome.precheck.model_copy(update={"reasons": reasons}))


@contextmanager
def _errors_at_candidate(plan: ConversionPlan, index: int) -> Iterator[None]:
    """Point errors about the method at this candidate, if the request lists candidates."""
    try:
        yield
    except (RebaseError, TransferError) as exc:
        is_listed = plan.method.listed_candidates is not None
        if is_listed and exc.pointer is not None and exc.pointer.startswith("/method"):
            exc.pointer = f"/method/candidates/{index}{exc.pointer.removeprefix('/method')}"
        raise
