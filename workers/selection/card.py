"""The part of a model card that says how the method was chosen."""

from __future__ import annotations

from rebase.methods.params import format_method
from workers.evaluation.card import SCORES
from workers.selection.rows import Scored, Selection


def selection_parts(found: Selection) -> tuple[str, list[list[str]], str]:
    """What was compared, the rows of a table with its head first, and what the other half says."""
    others = ""
    if found.confirmed is not None and not found.shared:
        confirmed = found.confirmed
        others = (
            f"On the other {found.confirming} examples, which had no part in the choice, it scores "
            f"{_cell(confirmed.score)} and the target alone {_cell(confirmed.target)}: a gain of "
            f"{_cell(confirmed.gain)}."
        )
    measured = (
        f"Each method was run, and its update measured on {found.choosing} examples "
        f"({SCORES.get(found.score, found.score)}; higher is better; 95 % intervals). "
        f"The target alone has {_cell(found.target)}."
    )
    return measured, _rows(found), others


def _rows(found: Selection) -> list[list[str]]:
    rows = [["method", "score", "gain over the target alone", "verdict of its pre-check", ""]]
    for place, row in enumerate(found.candidates):
        why = "chosen" if place == found.best else row.reason or ""
        rows.append([format_method(row.method), _cell(row.score), _cell(row.gain), row.verdict or "", why])
    return rows


def _cell(scored: Scored | None) -> str:
    return "" if scored is None else f"{scored.value:.3g} ({scored.low:.3g} to {scored.high:.3g})"
