"""The evaluation and method selection sections of a model card."""

from __future__ import annotations

from collections.abc import Sequence

from rebase.methods.params import format_method
from rebase.report.schema import Evaluation, Metric, Subject
from rebase.report.selection import ScoreInterval, Selection

SUBJECT_LABELS: dict[Subject, str] = {
    "moved": "target + moved adapter",
    "target": "target alone",
    "random": "target + random numbers of the same size",
    "pad": "target + the update copied number by number",
    "oracle": "target + an adapter trained on it",
    "source_adapter": "source + its own adapter",
    "source": "source alone",
}
SCORE_LABELS = {"accuracy": "share of right answers", "likelihood": "minus nats per byte of the right text"}
_COMPARISON_LABELS = {
    "difference": "gain over the target alone",
    "over_random": "gain over random numbers",
    "retention": "share of the skill that is kept (retention)",
    "gap_recovered": "share of native training that is kept (gap recovered)",
    "safety_drift": "change of the refusal rate (safety drift)",
}


def build_evaluation_lines(evaluation: Evaluation) -> list[list[str]]:
    """(summary, table of models, table of comparisons), each a list of Markdown lines."""
    metrics = [name for name in _list_metrics(evaluation) if name not in _COMPARISON_LABELS]
    header = ["model", *metrics]
    rows = [
        [
            SUBJECT_LABELS[subject],
            *[_format_metric(evaluation.find_metric(subject, metric)) for metric in metrics],
        ]
        for subject in SUBJECT_LABELS
        if any(evaluation.find_metric(subject, metric) for metric in metrics)
    ]
    comparison_rows = [
        [label, _format_metric(figure)]
        for metric, label in _COMPARISON_LABELS.items()
        if (figure := evaluation.find_metric("moved", metric)) is not None
    ]
    return [
        [summarize_evaluation(evaluation), ""],
        [*_build_table(header, rows), ""] if metrics else [],
        [*_build_table(["of the moved adapter", ""], comparison_rows), ""] if comparison_rows else [],
    ]


def summarize_evaluation(evaluation: Evaluation) -> str:
    """The evaluation's conclusion in one line."""
    difference = evaluation.find_metric("moved", "difference")
    if difference is None or difference.low is None or difference.high is None:
        return "No score decides here: there were no examples, so look at the single figures."
    transferred, baseline = (
        evaluation.find_metric("moved", "score"),
        evaluation.find_metric("target", "score"),
    )
    score = SCORE_LABELS.get(str(evaluation.score), evaluation.score)
    comparison = (
        f"{_format_value(transferred)} against {_format_value(baseline)} for the target "
        f"alone ({score}; higher is better; {difference.n} examples)"
    )
    if difference.low > 0.0:
        return f"The moved adapter helps: {comparison}."
    if difference.high < 0.0:
        return f"The moved adapter harms: {comparison}."
    return f"Whether the moved adapter helps cannot be told from these examples: {comparison}."


def _list_metrics(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(figure.metric for figure in evaluation.figures))


def _format_metric(metric: Metric | None) -> str:
    if metric is None:
        return ""
    if metric.value is None:
        return f"undefined: {metric.reason}"
    if metric.low is None or metric.high is None:
        return _format_value(metric)
    return f"{_format_value(metric)} ({metric.low:.3g} to {metric.high:.3g})"


def _format_value(metric: Metric | None) -> str:
    return "" if metric is None or metric.value is None else f"{metric.value:.3g}"


def _build_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, ["---"] * len(header), *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def build_selection_section(selection: Selection) -> tuple[str, list[list[str]], str]:
    """(introduction, table rows starting with the header, sentence about the confirmation half)."""
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
