"""The methods that were compared, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rebase.methods.params import format_method


def find_selection(
    result: Mapping[str, Any] | None, diagnostics: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Where a job tells it: in its result, and after a refusal in its diagnostics."""
    if result is not None:
        return result.get("selection")
    return ((diagnostics or {}).get("summary") or {}).get("selection")


def build_selection_tables(selection: Mapping[str, Any] | None) -> list[RenderableType]:
    """One line for each candidate and one for the target alone. None: no line."""
    if selection is None:
        return []
    title = f"compared on {selection['choosing']} examples ({selection['score']})"
    table = Table("candidate", box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("score", "95 % interval", "verdict", ""):
        table.add_column(column, justify="right" if column in ("score", "95 % interval") else "left")
    table.add_row("target alone", *map(Text, _format_score(selection["target"])), "", "")
    for index, row in enumerate(selection["candidates"]):
        best = "best" if index == selection["best"] else ""
        note = best or _get_first_sentence(row.get("reason"))
        cells = (format_method(row["method"]), *_format_score(row["score"]), row.get("verdict") or "", note)
        table.add_row(*map(Text, cells))
    confirmed = selection.get("confirmed")
    if confirmed is None or selection["shared"]:
        return [table]
    adapter_score, target_score = (confirmed[name]["value"] for name in ("score", "target"))
    return [
        table,
        f"On the other {selection['confirming']}: {adapter_score:.3f}, the target alone {target_score:.3f}.",
    ]


def _format_score(scored: Mapping[str, Any] | None) -> tuple[str, str]:
    if scored is None:
        return "", ""
    return f"{scored['value']:.3f}", f"{scored['low']:.3f} to {scored['high']:.3f}"


def _get_first_sentence(reason: str | None) -> str:
    """The first sentence; the whole is in the JSON."""
    return (reason or "").split(". ")[0]
