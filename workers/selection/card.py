"""The part of a model card that says how the method was chosen."""

from __future__ import annotations

from rebase.methods.params import format_method
from workers.evaluation.card import SCORE_LABELS
from workers.selection.rows import ScoreInterval, Selection


def build_selection_section(selection: Selection) -> tuple[str, list[list[str]], str]:
    """What was compared, the rows of a table with its head first, and what the other half says."""
    confirmation = ""
    if selection.confirmed is not None and not selection.shared:
        confirmed = selection.confirmed
        confirmation = (
            f"On the other {selection.confirming} examples, which had no part in the choice, it scores "
            f"{_format_score(confirmed.score)} and the target alone {_format_score(confirmed.target)}: "
            "a gain of "
            f"{_format_score(confirmed.gain)}."
        )
    introduction = (
        f"Each method was run, and its update measured on {selection.choosing} examples "
        f"({SCORE_LABELS.get(selection.score, selection.score)}; higher is better; 95 % intervals). "
        f"The target alone has {_format_score(selection.target)}."
    )
    return introduction, _build_rows(selection), confirmation


def _build_rows(selection: Selection) -> list[list[str]]:
    rows = [["method", "score", "gain over the target alone", "verdict of its pre-check", ""]]
    for index, row in enumerate(selection.candidates):
        note = "chosen" if index == selection.best else row.reason or ""
        rows.append(
            [
                format_method(row.method),
                _format_score(row.score),
                _format_score(row.gain),
                row.verdict or "",
                note,
            ]
        )
    return rows


def _format_score(score: ScoreInterval | None) -> str:
    return "" if score is None else f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g})"
