"""The evaluation and method selection sections of a model card."""

from __future__ import annotations

from collections.abc import Sequence

from rebase.methods.params import format_method
from rebase.report.schema import Evaluation, Metric, Subject
from rebase.report.selection import ScoreInterval, Selection

SUBJECT_LABELS: dict[Subject, str] = {
    "moved": "target + transferred adapter",
    "target": "target alone",
    "random": "target + random noise of the same norm",
    "pad": "target + the update copied entry by entry",
    "oracle": "target + an adapter trained on it",
    "source_adapter": "source + its own adapter",
    "source": "source alone",
}
SCORE_LABELS = {
    "accuracy": "share of correct answers",
    "likelihood": ("negative nats per byte of the correct text"),
}
_COMPARISON_LABELS = {
    "difference": "gain over the target alone",
    "over_random": "gain over random noise",
    "retention": "share of the skill that is retained (retention)",
    "gap_recovered": "share of native training's gain that is retained (gap recovered)",
    "safety_drift": "change in the refusal rate (safety drift)",
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
        [*_build_table(["of the transferred adapter", ""], comparison_rows), ""] if comparison_rows else [],
    ]


def summarize_evaluation(evaluation: Evaluation) -> str:
    """The evaluation's conclusion in one line."""
    difference = evaluation.find_metric("moved", "difference")
    if difference is None or difference.low is None or difference.high is None:
        return "There is no overall score because there were no examples; see the individual metrics."
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
        return f"The transferred adapter helps: {comparison}."
    if difference.high < 0.0:
        return f"The transferred adapter harms: {comparison}."
    return f"These examples do not show whether the transferred adapter helps: {comparison}."


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
            f"On the other {selection.confirming} examples, which were not used for the selection, it "
            f"scores {_format_score(confirmed.score)} and the target alone "
            f"{_format_score(confirmed.target)}: a gain of {_format_score(confirmed.gain)}."
        )
    introduction = (
        f"Each method was run and its update evaluated on {selection.choosing} examples "
        f"({SCORE_LABELS.get(selection.score, selection.score)}; higher is better; 95 % intervals). The "
        f"target alone scores {_format_score(selection.target)}."
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
