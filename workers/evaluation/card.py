"""The part of a model card that says what the moved adapter is worth."""

from __future__ import annotations

from collections.abc import Sequence

from rebase.report.schema import Evaluation, Metric, Subject

NAMES: dict[Subject, str] = {
    "moved": "target + moved adapter",
    "target": "target alone",
    "random": "target + random numbers of the same size",
    "pad": "target + the update copied number by number",
    "oracle": "target + an adapter trained on it",
    "source_adapter": "source + its own adapter",
    "source": "source alone",
}
SCORES = {"accuracy": "share of right answers", "likelihood": "minus nats per byte of the right text"}
_WORTH = {
    "difference": "gain over the target alone",
    "over_random": "gain over random numbers",
    "retention": "share of the skill that is kept (retention)",
    "gap_recovered": "share of native training that is kept (gap recovered)",
    "safety_drift": "change of the refusal rate (safety drift)",
}


def evaluation_lines(found: Evaluation) -> list[list[str]]:
    """(sentence lines, table of models, table of what follows), each a list of Markdown lines."""
    metrics = [name for name in _in_order(found) if name not in _WORTH]
    head = ["model", *metrics]
    rows = [
        [NAMES[subject], *[_cell(found.find_metric(subject, metric)) for metric in metrics]]
        for subject in NAMES
        if any(found.find_metric(subject, metric) for metric in metrics)
    ]
    worth = [
        [label, _cell(figure)]
        for metric, label in _WORTH.items()
        if (figure := found.find_metric("moved", metric)) is not None
    ]
    return [
        [sentence(found), ""],
        [*_table(head, rows), ""] if metrics else [],
        [*_table(["of the moved adapter", ""], worth), ""] if worth else [],
    ]


def sentence(found: Evaluation) -> str:
    """One line that a reader can act on."""
    difference = found.find_metric("moved", "difference")
    if difference is None or difference.low is None or difference.high is None:
        return "No score decides here: there were no examples, so look at the single figures."
    moved, alone = found.find_metric("moved", "score"), found.find_metric("target", "score")
    score = SCORES.get(str(found.score), found.score)
    means = f"{_number(moved)} against {_number(alone)} for the target alone ({score}; higher is better; "
    means += f"{difference.n} examples)"
    if difference.low > 0.0:
        return f"The moved adapter helps: {means}."
    if difference.high < 0.0:
        return f"The moved adapter harms: {means}."
    return f"Whether the moved adapter helps cannot be told from these examples: {means}."


def _in_order(found: Evaluation) -> list[str]:
    return list(dict.fromkeys(figure.metric for figure in found.figures))


def _cell(figure: Metric | None) -> str:
    if figure is None:
        return ""
    if figure.value is None:
        return f"undefined: {figure.reason}"
    if figure.low is None or figure.high is None:
        return _number(figure)
    return f"{_number(figure)} ({figure.low:.3g} to {figure.high:.3g})"


def _number(figure: Metric | None) -> str:
    return "" if figure is None or figure.value is None else f"{figure.value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]
