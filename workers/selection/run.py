"""Several methods run on one adapter and measured on the request's examples; the best one goes on.

Each candidate goes the whole way of a conversion up to the update in float32: its own evidence, its own
pre-check, every site, DARE, refinement. Only the best so far is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

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
from rebase.evaluation.selection import Choice, ExampleSplit, choose_best, split_examples
from rebase.methods.base_params import MethodParams
from rebase.methods.dare import dare_variants
from rebase.report.schema import FindingRow, Report
from transfer.precheck.rules import find_dare_losses
from workers.evaluation.prepare import Prepared
from workers.evaluation.scoring import Measure
from workers.selection.rows import CandidateRow, Selection
from workers.selection.table import nothing_better, table_of, why_chosen


@dataclass
class _Contest:
    """What was tried so far. `measured`: the row in `rows` of each of `scores`; `fit`: may it be kept?"""

    alone: tuple[float, ...]
    split: ExampleSplit
    lenient: bool
    rows: list[CandidateRow] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    fit: list[bool] = field(default_factory=list)
    kept: tuple[MethodRun, TransferResult] | None = None

    @property
    def choice(self) -> Choice:
        return choose_best(self.alone, self.scores, self.split, self.fit)

    def refused(self, params: MethodParams, reason: str, move: MethodRun | None = None) -> None:
        """A candidate that cannot be measured, with every share of its sweep."""
        verdict = move.precheck_outcome.precheck.verdict if move is not None else None
        self.rows.append(CandidateRow(method=_shown(params), verdict=verdict, reason=reason))

    def scored(self, move: MethodRun, found: TransferResult, scores: tuple[float, ...]) -> None:
        """A candidate that was; it is kept while nothing scores better."""
        judged = move.precheck_outcome
        self.measured.append(len(self.rows))
        self.rows.append(CandidateRow(method=_shown(judged.params), verdict=judged.precheck.verdict))
        self.scores.append(scores)
        self.fit.append(self.lenient or judged.precheck.verdict != "incompatible")
        if self.choice.best_index == len(self.scores) - 1:
            self.kept = (move, found)


def _shown(params: MethodParams) -> dict[str, Any]:
    return params.model_dump(mode="json")


def best_of(
    plan: ConversionPlan,
    bench: ConversionContext,
    evaluation: Prepared,
    rules: MethodRun,
    report: Report,
) -> tuple[MethodRun, TransferResult, Selection]:
    """The candidate that scores highest, its updates, and the table of all of them.

    `rules`: what was settled without measuring; `report`: what is told with the table when nothing is worth
    publishing, which raises NothingBetter.
    """
    measure = evaluation.measure
    assert measure is not None
    wanted = plan.candidates(has_pool=rules.evidence.offer is not None)
    tries = sum(len(dare_variants(params)) for params in wanted)
    evaluation.progress.begin((1 + tries) * len(evaluation.spec.examples))
    alone = measure({})
    lenient = not plan.rejects_incompatible
    contest = _Contest(alone, split_examples(len(alone), evaluation.spec.seed), lenient)
    for place, params in enumerate(wanted):
        with _named(plan, place):
            _try(plan, params, bench, rules, measure, contest)
    table = table_of(
        evaluation.spec,
        contest.rows,
        contest.measured,
        contest.alone,
        contest.scores,
        contest.split,
        contest.choice,
    )
    enforced = plan.selects_by_evaluation and evaluation.spec.on_worse == "reject"
    if contest.kept is None or (enforced and table.ending != "better"):
        bench.progress.report_evidence(report.model_copy(update={"selection": table}))
        raise nothing_better(table, trained=getattr(plan.method, "train", True))
    move, found = contest.kept
    chosen = FindingRow(code="measured", message=why_chosen(table), weight="info")
    return replace(move, precheck_outcome=_told(move.precheck_outcome, chosen)), found, table


def _try(
    plan: ConversionPlan,
    params: MethodParams,
    bench: ConversionContext,
    rules: MethodRun,
    measure: Measure,
    contest: _Contest,
) -> None:
    """One candidate, once for each share of its sweep; what cannot be carried is a row that says why."""
    named = plan.method.listed_candidates is not None
    move: MethodRun | None = None
    try:
        move = prepare_method(plan.for_candidate(params), bench, None if named else rules.evidence.offer)
        refusals = [
            row.message for row in move.precheck_outcome.precheck.reasons if row.code == "refused_by_method"
        ]
        if refusals:
            contest.refused(params, refusals[0], move)
            return
        whole = transfer_sites(move, bench)
        for variant in dare_variants(params):
            candidate = replace(move, precheck_outcome=_with_share(move.precheck_outcome, variant))
            found = postprocess(whole, candidate, bench)
            contest.scored(candidate, found, measure(found.deltas))
    except TransferError as refusal:
        contest.refused(params, f"{refusal.message} {refusal.hint or ''}".strip(), move)


def _with_share(judged: PrecheckOutcome, params: MethodParams) -> PrecheckOutcome:
    """The same verdict, about the method with one share of DARE's."""
    judged = replace(judged, params=params)
    if params.dare is None:
        return judged
    judged = _told(judged, *map(build_finding_row, find_dare_losses(params.dare)))
    if judged.precheck.verdict != "compatible":
        return judged
    return replace(judged, precheck=judged.precheck.model_copy(update={"verdict": "uncertain"}))


def _told(judged: PrecheckOutcome, *more: FindingRow) -> PrecheckOutcome:
    reasons = [*judged.precheck.reasons, *more]
    return replace(judged, precheck=judged.precheck.model_copy(update={"reasons": reasons}))


@contextmanager
def _named(plan: ConversionPlan, place: int) -> Iterator[None]:
    """An error about the method is about this candidate, where the request lists them."""
    try:
        yield
    except (RebaseError, TransferError) as exc:
        listed = plan.method.listed_candidates is not None
        if listed and exc.pointer is not None and exc.pointer.startswith("/method"):
            exc.pointer = f"/method/candidates/{place}{exc.pointer.removeprefix('/method')}"
        raise
