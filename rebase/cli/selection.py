"""The methods that were compared, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rebase.methods.params import format_method


def selection_of(
    result: Mapping[str, Any] | None, diagnostics: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Where a job tells it: in its result, and after a refusal in its diagnostics."""
    if result is not None:
        return result.get("selection")
    return ((diagnostics or {}).get("summary") or {}).get("selection")


def selection_tables(found: Mapping[str, Any] | None) -> list[RenderableType]:
    """One line for each candidate and one for the target alone. None: no line."""
    if found is None:
        return []
    title = f"compared on {found['choosing']} examples ({found['score']})"
    table = Table("candidate", box=None, pad_edge=False, title=title, title_justify="left")
    for column in ("score", "95 % interval", "verdict", ""):
        table.add_column(column, justify="right" if column in ("score", "95 % interval") else "left")
    table.add_row("target alone", *map(Text, _cells(found["target"])), "", "")
    for place, row in enumerate(found["candidates"]):
        best = "best" if place == found["best"] else ""
        note = best or _first(row.get("reason"))
        cells = (format_method(row["method"]), *_cells(row["score"]), row.get("verdict") or "", note)
        table.add_row(*map(Text, cells))
    confirmed = found.get("confirmed")
    if confirmed is None or found["shared"]:
        return [table]
    ours, alone = (confirmed[name]["value"] for name in ("score", "target"))
    return [table, f"On the other {found['confirming']}: {ours:.3f}, the target alone {alone:.3f}."]


def _cells(scored: Mapping[str, Any] | None) -> tuple[str, str]:
    if scored is None:
        return "", ""
    return f"{scored['value']:.3f}", f"{scored['low']:.3f} to {scored['high']:.3f}"


def _first(reason: str | None) -> str:
    """The first sentence; the whole is in the JSON."""
    return (reason or "").split(". ")[0]
