"""Jobs, verdicts and diagnostics as text and tables. External text is never interpreted as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rebase.client.models import Job
from rebase.errors import PublicError
from rebase.methods.params import format_method

_VERDICT_STYLES = {"compatible": "bold green", "uncertain": "bold yellow", "incompatible": "bold red"}
_STATE_STYLES = {"succeeded": "green", "failed": "red", "rejected": "red", "cancelled": "yellow"}


def format_job(job: Job, diagnostics: Mapping[str, Any] | None = None) -> list[RenderableType]:
    """One job in a few lines: state, verdict with reasons, result or error. Without a result, the reasons are
    taken from the diagnostics."""
    lines: list[RenderableType] = [format_field("job", job.id, "")]
    state = job.status if job.phase is None or job.done else f"{job.status} ({job.phase})"
    lines.append(format_field("state", state, _STATE_STYLES.get(job.status, "")))
    if job.verdict is not None:
        precheck = ((diagnostics or {}).get("summary") or {}).get("precheck") or {}
        reasons = (job.result or precheck).get("reasons") or ()
        lines.extend(format_verdict(job.verdict, reasons))
    lines.extend(format_layers((diagnostics or {}).get("layer_map")))
    output = (job.result or {}).get("output")
    if isinstance(output, dict):
        method = (job.result or {}).get("method") or {}
        lines.append(format_field("method", str(method.get("name", "")), ""))
        lines.append(format_field("adapter", f"{output.get('repo_id')}@{output.get('commit')}", ""))
        lines.append(format_field("", str(output.get("pull_request") or output.get("url") or ""), ""))
    if job.kind == "pool":
        lines.append(format_field("pool", f"rebase pools show {job.id}"))
    lines.extend(format_error(job.error))
    return lines


def format_layers(layer_map: Mapping[str, Any] | None) -> list[Text]:
    """How many target layers have a similar source layer, if both bases read a text."""
    if layer_map is None or layer_map.get("coverage") is None:
        return []
    share, threshold = layer_map["coverage"], layer_map.get("threshold")
    return [
        format_field("layers", f"{share:.0%} of the target's have a source layer above CKA {threshold:g}")
    ]


def format_error(error: PublicError | None) -> list[Text]:
    """The error and its hint, if any."""
    if error is None:
        return []
    lines = [format_field("error", f"{error.message} [{error.code}]", "red")]
    return [*lines, format_field("", error.hint)] if error.hint else lines


def format_verdict(verdict: str, reasons: Iterable[Mapping[str, Any] | str]) -> list[Text]:
    """The verdict and its reasons."""
    lines = [format_field("verdict", verdict, _VERDICT_STYLES.get(verdict, ""))]
    for reason in reasons:
        message = reason if isinstance(reason, str) else str(reason.get("message", reason))
        lines.append(format_field("", f"- {message}", ""))
    return lines


def build_jobs_table(jobs: Sequence[Job]) -> Table:
    """Jobs as a table."""
    table = make_id_table("kind", "state", "adapter", "target", "created (UTC)")
    for job in jobs:
        table.add_row(
            job.id,
            job.kind,
            Text(job.status, style=_STATE_STYLES.get(job.status, "")),
            Text(format_repo(job.request.get("adapter" if job.kind != "pool" else "source"))),
            Text(format_repo(job.request.get("target"))),
            Text(str(job.created_at or "")[:19]),
        )
    return table


def build_diagnostics_table(diagnostics: Mapping[str, Any]) -> Table:
    """Every measurement over all sites: mean, minimum, maximum. Per-site values are in the JSON."""
    sites = diagnostics.get("sites") or []
    table = Table("measurement", box=None, pad_edge=False, title=f"{len(sites)} sites", title_justify="left")
    for column in ("mean", "lowest", "highest"):
        table.add_column(column, justify="right")
    for name in sorted({name for site in sites for name in site.get("measurements", {})}):
        values = [site["measurements"][name] for site in sites if name in site.get("measurements", {})]
        figures = (sum(values) / len(values), min(values), max(values))
        table.add_row(Text(name), *[f"{figure:.4g}" for figure in figures])
    flags = [flag for site in sites for flag in site.get("flags", ())]
    for flag in sorted(set(flags)):
        table.add_row(Text(f"flag {flag}"), f"{flags.count(flag)} sites", "", "")
    return table


def make_id_table(*columns: str) -> Table:
    """An empty table whose first column shows whole ids, so that they can be copied."""
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, min_width=32)
    for name in columns:
        table.add_column(name)
    return table


def format_field(label: str, text: str, style: str = "") -> Text:
    """One labelled line."""
    return Text.assemble((f"{label:<9} ", "dim"), (text, style))


def format_repo(ref: Any) -> str:
    """A reference of a stored request as people write it; an empty text for anything else."""
    if not isinstance(ref, dict):
        return ""
    revision, subfolder = ref.get("revision", "main"), ref.get("subfolder")
    name = str(ref.get("repo_id", "")) + ("" if revision == "main" else f"@{revision}")
    return f"{name}:{subfolder}" if subfolder else name


_MODEL_LABELS = {
    "moved": "target + transferred adapter",
    "target": "target alone",
    "random": "target + random noise",
    "pad": "target + copied update",
    "oracle": "target + oracle",
    "source_adapter": "source + its adapter",
    "source": "source alone",
}
# Metrics of the transferred adapter as a whole, not of each model.
_ADAPTER_METRICS = ("difference", "over_random", "retention", "gap_recovered", "safety_drift")


def build_evaluation_tables(evaluation: Mapping[str, Any] | None) -> list[RenderableType]:
    """Models side by side for each metric, then the metrics of the transferred adapter. None: nothing."""
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


def find_selection(
    result: Mapping[str, Any] | None, diagnostics: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """A job's method selection: from its result or, after a rejection, from its diagnostics."""
    if result is not None:
        return result.get("selection")
    return ((diagnostics or {}).get("summary") or {}).get("selection")


def build_selection_tables(selection: Mapping[str, Any] | None) -> list[RenderableType]:
    """One line per candidate and one for the target alone. None: nothing."""
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
        f"On the other {selection['confirming']}: {adapter_score:.3f}; target alone: {target_score:.3f}.",
    ]


def _format_score(scored: Mapping[str, Any] | None) -> tuple[str, str]:
    if scored is None:
        return "", ""
    return f"{scored['value']:.3f}", f"{scored['low']:.3f} to {scored['high']:.3f}"


def _get_first_sentence(reason: str | None) -> str:
    """The first sentence; the JSON has the whole text."""
    return (reason or "").split(". ")[0]
