"""Builds the table of compared methods with intervals, and the sentences about it."""

from __future__ import annotations

from collections.abc import Sequence

from rebase.errors import NothingBetter
from rebase.evaluation.bootstrap import Interval, PairedBootstrap
from rebase.evaluation.scoring import get_primary_metric
from rebase.evaluation.selection import Choice, ExampleSplit
from rebase.methods.params import format_method
from rebase.report.selection import CandidateRow, Confirmation, ScoreInterval, Selection
from rebase.schemas.evaluation import EvaluationSpec

_BASELINE = "alone"
Scores = Sequence[float]


def build_selection(
    spec: EvaluationSpec,
    rows: Sequence[CandidateRow],
    measured_rows: Sequence[int],
    baseline: Scores,
    scores: Sequence[Scores],
    split: ExampleSplit,
    choice: Choice,
) -> Selection:
    """Add scores and gains on the selection half to the `measured_rows`; confirm the best on the other
    half."""
    candidates = list(rows)
    bootstrap = _bootstrap_scores(spec, baseline, scores, split.selection_indices)
    for number, row_index in enumerate(measured_rows):
        update = {
            "score": _to_interval(bootstrap.mean(str(number))),
            "gain": _estimate_gain(bootstrap, number),
        }
        candidates[row_index] = rows[row_index].model_copy(update=update)
    confirmed = None
    if choice.best_index is not None:
        confirmation_bootstrap = _bootstrap_scores(spec, baseline, scores, split.confirmation_indices)
        confirmed = Confirmation(
            score=_to_interval(confirmation_bootstrap.mean(str(choice.best_index))),
            target=_to_interval(confirmation_bootstrap.mean(_BASELINE)),
            gain=_estimate_gain(confirmation_bootstrap, choice.best_index),
        )
    return Selection(
        score=get_primary_metric(spec) or "",
        seed=spec.seed,
        choosing=len(split.selection_indices),
        confirming=len(split.confirmation_indices),
        shared=split.is_shared,
        target=_to_interval(bootstrap.mean(_BASELINE)),
        candidates=candidates,
        best=measured_rows[choice.best_index] if choice.best_index is not None else None,
        ending=choice.status,
        confirmed=confirmed,
    )


def explain_choice(selection: Selection) -> str:
    """One sentence about the best candidate."""
    assert selection.best is not None
    assert selection.confirmed is not None
    best, confirmed = selection.candidates[selection.best], selection.confirmed
    assert best.score is not None
    count = sum(row.score is not None for row in selection.candidates)
    confirmation = (
        ""
        if selection.shared
        else (
            f"; on the other {selection.confirming}, {_format_score(confirmed.score)} against "
            f"{_format_score(confirmed.target)}"
        )
    )
    return (
        f"Of {count} evaluated candidate(s), {format_method(best.method)} scores highest: "
        f"{_format_score(best.score)} against {_format_score(selection.target)} for the target alone "
        f"({selection.score}) on the {selection.choosing} example(s) used for selection{confirmation}."
    )


def make_nothing_better_error(selection: Selection, *, allows_training: bool) -> NothingBetter:
    """The error that no candidate is good enough, listing all of them."""
    if selection.best is None:
        has_measured = any(row.score is not None for row in selection.candidates)
        message = (
            "Every candidate that could be run was found incompatible by its own pre-check."
            if has_measured
            else "No candidate could be run."
        )
    elif selection.ending == "not_confirmed" and selection.confirmed is not None:
        best, confirmed = selection.candidates[selection.best], selection.confirmed
        message = (
            f"{format_method(best.method)} scores best on the examples used for selection, but on the "
            f"other {selection.confirming} it scores {_format_score(confirmed.score)} and the target alone "
            f"{_format_score(confirmed.target)} ({selection.score})."
        )
    else:
        baseline = _format_score(selection.target)
        message = f"No candidate scores better than the target alone, {baseline} ({selection.score})."
    advice = "Retrain on the new base" if allows_training else "Allow training with method.train=true"
    setting = "precheck.on_incompatible" if selection.best is None else "evaluate.on_worse"
    return NothingBetter(
        f"{message} Tried: {'; '.join(map(_describe_candidate, selection.candidates))}.",
        hint=f'{advice}, or set {setting} to "warn" to keep the best of them anyway.',
        pointer="/method",
    )


def _describe_candidate(row: CandidateRow) -> str:
    if row.score is not None:
        suffix = " (incompatible)" if row.verdict == "incompatible" else ""
        return f"{format_method(row.method)} {_format_score(row.score)}{suffix}"
    short_reason = (row.reason or "").split(". ")[0].rstrip(".")
    return f"{format_method(row.method)} was not measured ({short_reason})"


def _bootstrap_scores(
    spec: EvaluationSpec, baseline: Scores, scores: Sequence[Scores], indices: Sequence[int]
) -> PairedBootstrap:
    scores_by_name = {_BASELINE: baseline} | {str(number): row for number, row in enumerate(scores)}
    selected = {name: [row[place] for place in indices] for name, row in scores_by_name.items()}
    return PairedBootstrap(selected, resamples=spec.bootstrap, seed=spec.seed)


def _estimate_gain(bootstrap: PairedBootstrap, number: int) -> ScoreInterval:
    return _to_interval(bootstrap.difference(str(number), _BASELINE))


def _to_interval(estimate: Interval) -> ScoreInterval:
    return ScoreInterval(value=estimate.value, low=estimate.low, high=estimate.high)


def _format_score(score: ScoreInterval) -> str:
    return f"{score.value:.3f}"
