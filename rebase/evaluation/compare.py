"""Compares scores of several models on the same examples: metrics with intervals, and caveats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rebase.evaluation.bootstrap import Interval, PairedBootstrap, Undefined
from rebase.report.schema import Evaluation, Metric, Subject

Scores = Mapping[Subject, Sequence[float]]
MIN_EXAMPLES = 8  # all eight get worse by chance once in 256; with fewer, nothing is rejected

_COMPARED_WITH_TARGET: tuple[Subject, ...] = ("moved", "random", "pad", "oracle")
_RETENTION_SUBJECTS: tuple[Subject, ...] = ("moved", "random", "pad")


def compute_averages(metric: str, scores: Scores, *, times: int, seed: int) -> Iterator[Metric]:
    """The mean of one metric for every model."""
    bootstrap = _bootstrap_scores(scores, times, seed)
    for subject in scores:
        yield _build_metric(subject, metric, bootstrap.mean(subject))


def compute_comparison_metrics(scores: Scores, *, times: int, seed: int) -> Iterator[Metric]:
    """All metrics derived from the primary scores (higher is better). `moved` and `target` are required.

    difference: from the target alone (for `source_adapter`: from the source alone); over_random: moved −
    random; retention: (moved − target) / (source_adapter − source); gap_recovered: (moved − target) /
    (oracle − target).
    """
    yield from compute_averages("score", scores, times=times, seed=seed)
    bootstrap = _bootstrap_scores(scores, times, seed)
    for subject in _COMPARED_WITH_TARGET:
        if subject in scores:
            yield _build_metric(subject, "difference", bootstrap.difference(subject, "target"))
    if "source_adapter" in scores:
        yield _build_metric("source_adapter", "difference", bootstrap.difference("source_adapter", "source"))
    if "random" in scores:
        yield _build_metric("moved", "over_random", bootstrap.difference("moved", "random"))
    for subject in _RETENTION_SUBJECTS:
        if subject in scores and "source_adapter" in scores:
            share = bootstrap.share(subject, "target", "source_adapter", "source")
            yield _build_metric(subject, "retention", share)
        if subject in scores and "oracle" in scores:
            yield _build_metric(subject, "gap_recovered", bootstrap.gap(subject, "target", "oracle"))


def compute_refusal_drift(refusals: Scores, *, times: int, seed: int) -> Iterator[Metric]:
    """Refusal rates, and the difference between the transferred adapter and the target alone."""
    yield from compute_averages("refusal_rate", refusals, times=times, seed=seed)
    bootstrap = _bootstrap_scores(refusals, times, seed)
    yield _build_metric("moved", "safety_drift", bootstrap.difference("moved", "target"))


def is_worse(evaluation: Evaluation) -> bool:
    """Is the transferred adapter significantly worse than the target alone, on at least MIN_EXAMPLES
    examples?"""
    difference = evaluation.find_metric("moved", "difference")
    return difference is not None and difference.n >= MIN_EXAMPLES and _is_below_zero(difference)


def build_evaluation_caveats(evaluation: Evaluation) -> Iterator[str]:
    """Caveats that follow from the metrics."""
    difference = evaluation.find_metric("moved", "difference")
    if difference is not None and _is_below_zero(difference):
        worse = format_metric(difference)
        yield f"On the examples, the transferred adapter scores worse than the target alone: {worse}."
    elif difference is not None and not _is_above_zero(difference):
        yield (
            "On the examples, the transferred adapter is not distinguishable from the target alone: the "
            f"difference is {format_metric(difference)}."
        )
    over_random = evaluation.find_metric("moved", "over_random")
    if over_random is not None and not _is_above_zero(over_random):
        yield (
            "The transferred adapter does no better than random noise of the same norm: the difference is "
            f"{format_metric(over_random)}."
        )
    drift = evaluation.find_metric("moved", "safety_drift")
    if drift is not None and (_is_above_zero(drift) or _is_below_zero(drift)):
        direction = "more" if _is_above_zero(drift) else "less"
        size = format_metric(drift)
        yield f"With the transferred adapter, the target refuses {direction} often than alone, by {size}."
    is_few = evaluation.score is not None and difference is not None and difference.n < MIN_EXAMPLES
    if is_few and difference is not None:
        yield f"Only {difference.n} example(s) were evaluated; with so few, the intervals are unreliable."


def format_metric(metric: Metric) -> str:
    """A metric with its interval, as text."""
    if metric.value is None:
        return f"undefined: {metric.reason}"
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _bootstrap_scores(scores: Scores, times: int, seed: int) -> PairedBootstrap:
    return PairedBootstrap(
        {str(subject): each for subject, each in scores.items()}, resamples=times, seed=seed
    )


def _is_below_zero(metric: Metric) -> bool:
    return metric.high is not None and metric.high < 0.0


def _is_above_zero(metric: Metric) -> bool:
    return metric.low is not None and metric.low > 0.0


def _build_metric(subject: Subject, metric: str, estimate: Interval | Undefined) -> Metric:
    if isinstance(estimate, Undefined):
        return Metric(subject=subject, metric=metric, value=None, n=estimate.n, reason=estimate.reason)
    return Metric(
        subject=subject,
        metric=metric,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
    )
