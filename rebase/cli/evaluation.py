"""An evaluation as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

_MODEL_LABELS = {
    "moved": "target + moved adapter",
    "target": "target alone",
    "random": "target + random numbers",
    "pad": "target + copied numbers",
    "oracle": "target + oracle",
    "source_adapter": "source + its adapter",
    "source": "source alone",
}
# What is said of the moved adapter as a whole, not of every model.
_ADAPTER_METRICS = ("difference", "over_random", "retention", "gap_recovered", "safety_drift")


def build_evaluation_tables(evaluation: Mapping[str, Any] | None) -> list[RenderableType]:
    """Models side by side for each metric, then what that says of the moved adapter. None: no line."""
    if evaluation is None or not evaluation.get("figures"):
        return []
    figures = evaluation["figures"]
    table = Table("evaluation", box=None, pad_edge=False)
    for column in ("model", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for figure in figures:
        if figure["metric"] in _ADAPTER_METRICS and figure["subject"] != "moved":
            continue
        name = figure["metric"]
        if name == "score":
            name = f"score ({evaluation.get('score')})"
        table.add_row(
            Text(name),
            Text(_MODEL_LABELS.get(figure["subject"], figure["subject"])),
            *map(Text, _format_metric(figure)),
            str(figure["n"]),
        )
    return [table]


def _format_metric(figure: Mapping[str, Any]) -> tuple[str, str]:
    if figure["value"] is None:
        return "undefined", str(figure["reason"])
    if figure["low"] is None:
        return f"{figure['value']:.3f}", ""
    return f"{figure['value']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}"
