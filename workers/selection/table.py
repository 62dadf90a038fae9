"""What a comparison of methods says: the table of candidates with intervals, and sentences about it."""

from __future__ import annotations

from collections.abc import Sequence

from rebase.errors import NothingBetter
from rebase.evaluation.bootstrap import Interval, PairedBootstrap
from rebase.evaluation.selection import Choice, ExampleSplit
from rebase.methods.params import format_method
from rebase.schemas.evaluation import EvaluationSpec
from workers.evaluation.scoring import headline_of
from workers.selection.rows import CandidateRow, Confirmed, Scored, Selection

_ALONE = "alone"
Scores = Sequence[float]


def table_of(
    spec: EvaluationSpec,
    rows: Sequence[CandidateRow],
    measured: Sequence[int],
    alone: Scores,
    scores: Sequence[Scores],
    split: ExampleSplit,
    choice: Choice,
) -> Selection:
    """Scores and gains on the choosing half for the `measured` rows; those of the best on the other half."""
    told = list(rows)
    drawn = _drawn(spec, alone, scores, split.selection_indices)
    for number, place in enumerate(measured):
        figures = {"score": _scored(drawn.mean(str(number))), "gain": _gain(drawn, number)}
        told[place] = rows[place].model_copy(update=figures)
    confirmed = None
    if choice.best_index is not None:
        other = _drawn(spec, alone, scores, split.confirmation_indices)
        confirmed = Confirmed(
            score=_scored(other.mean(str(choice.best_index))),
            target=_scored(other.mean(_ALONE)),
            gain=_gain(other, choice.best_index),
        )
    return Selection(
        score=headline_of(spec) or "",
        seed=spec.seed,
        choosing=len(split.selection_indices),
        confirming=len(split.confirmation_indices),
        shared=split.is_shared,
        target=_scored(drawn.mean(_ALONE)),
        candidates=told,
        best=measured[choice.best_index] if choice.best_index is not None else None,
        ending=choice.status,
        confirmed=confirmed,
    )


def why_chosen(found: Selection) -> str:
    """Of the best candidate, in one sentence."""
    assert found.best is not None
    assert found.confirmed is not None
    best, confirmed = found.candidates[found.best], found.confirmed
    assert best.score is not None
    tried = sum(row.score is not None for row in found.candidates)
    on_others = (
        ""
        if found.shared
        else f"; on the other {found.confirming} {_of(confirmed.score)} against {_of(confirmed.target)}"
    )
    return (
        f"Of {tried} candidate(s) that were run, {format_method(best.method)} scores highest: "
        f"{_of(best.score)} against {_of(found.target)} of the target alone ({found.score}) "
        f"on the {found.choosing} example(s) that chose{on_others}."
    )


def nothing_better(found: Selection, *, trained: bool) -> NothingBetter:
    """The refusal, with every candidate in it."""
    if found.best is None:
        ran = any(row.score is not None for row in found.candidates)
        said = (
            "Every candidate that could be run is incompatible by its own pre-check."
            if ran
            else "No candidate could be run."
        )
    elif found.ending == "not_confirmed" and found.confirmed is not None:
        best, confirmed = found.candidates[found.best], found.confirmed
        said = (
            f"{format_method(best.method)} scores best on the examples that chose, but on the other "
            f"{found.confirming} it has {_of(confirmed.score)} and the target alone "
            f"{_of(confirmed.target)} ({found.score})."
        )
    else:
        said = f"No candidate scores better than the target alone, {_of(found.target)} ({found.score})."
    first = "Retrain on the new base" if trained else "Allow training with method.train=true"
    knob = "precheck.on_incompatible" if found.best is None else "evaluate.on_worse"
    return NothingBetter(
        f"{said} Tried: {'; '.join(map(_line, found.candidates))}.",
        hint=f'{first}, or set {knob} to "warn" to keep the best of them all the same.',
        pointer="/method",
    )


def _line(row: CandidateRow) -> str:
    if row.score is not None:
        doubtful = " (incompatible)" if row.verdict == "incompatible" else ""
        return f"{format_method(row.method)} {_of(row.score)}{doubtful}"
    first = (row.reason or "").split(". ")[0].rstrip(".")
    return f"{format_method(row.method)} was not measured ({first})"


def _drawn(
    spec: EvaluationSpec, alone: Scores, scores: Sequence[Scores], places: Sequence[int]
) -> PairedBootstrap:
    named = {_ALONE: alone} | {str(number): row for number, row in enumerate(scores)}
    picked = {name: [row[place] for place in places] for name, row in named.items()}
    return PairedBootstrap(picked, resamples=spec.bootstrap, seed=spec.seed)


def _gain(drawn: PairedBootstrap, number: int) -> Scored:
    return _scored(drawn.difference(str(number), _ALONE))


def _scored(found: Interval) -> Scored:
    return Scored(value=found.value, low=found.low, high=found.high)


def _of(scored: Scored) -> str:
    return f"{scored.value:.3f}"
