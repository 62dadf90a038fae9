"""From scores of several models on the same examples to figures with intervals, and to sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rebase.evaluation.bootstrap import Interval, PairedBootstrap, Undefined
from rebase.report.schema import Evaluation, Metric, Subject

Scores = Mapping[Subject, Sequence[float]]
FEWEST = 8  # examples; eight that all get worse by chance: 1 in 256. From fewer nothing is refused.

_ABOVE_TARGET: tuple[Subject, ...] = ("moved", "random", "pad", "oracle")
_KEPT: tuple[Subject, ...] = ("moved", "random", "pad")


def averages(metric: str, scores: Scores, *, times: int, seed: int) -> Iterator[Metric]:
    """The mean of one metric for every model."""
    resampled = _resampled(scores, times, seed)
    for subject in scores:
        yield _figure(subject, metric, resampled.mean(subject))


def judged(scores: Scores, *, times: int, seed: int) -> Iterator[Metric]:
    """All that follows from the scores that decide, higher is better. `moved` and `target` must be there.

    difference: to the target alone (of `source_adapter`: to the source alone); over_random: of the moved
    adapter to the random control; retention: (moved − target) / (source_adapter − source); gap_recovered:
    (moved − target) / (oracle − target).
    """
    yield from averages("score", scores, times=times, seed=seed)
    resampled = _resampled(scores, times, seed)
    for subject in _ABOVE_TARGET:
        if subject in scores:
            yield _figure(subject, "difference", resampled.difference(subject, "target"))
    if "source_adapter" in scores:
        yield _figure("source_adapter", "difference", resampled.difference("source_adapter", "source"))
    if "random" in scores:
        yield _figure("moved", "over_random", resampled.difference("moved", "random"))
    for subject in _KEPT:
        if subject in scores and "source_adapter" in scores:
            kept = resampled.share(subject, "target", "source_adapter", "source")
            yield _figure(subject, "retention", kept)
        if subject in scores and "oracle" in scores:
            yield _figure(subject, "gap_recovered", resampled.gap(subject, "target", "oracle"))


def drifted(refused: Scores, *, times: int, seed: int) -> Iterator[Metric]:
    """Refusal rates, and how far the moved adapter's is from that of the target alone."""
    yield from averages("refusal_rate", refused, times=times, seed=seed)
    resampled = _resampled(refused, times, seed)
    yield _figure("moved", "safety_drift", resampled.difference("moved", "target"))


def is_worse(found: Evaluation) -> bool:
    """Is the moved adapter worse than the target alone, by enough examples for the interval to mean it?"""
    difference = found.find_metric("moved", "difference")
    return difference is not None and difference.n >= FEWEST and _below(difference)


def sentences(found: Evaluation) -> Iterator[str]:
    """Caveats that the figures call for."""
    difference = found.find_metric("moved", "difference")
    if difference is not None and _below(difference):
        yield f"On the examples the moved adapter scores worse than the target alone: {shown(difference)}."
    elif difference is not None and not _above(difference):
        yield (
            "On the examples the moved adapter cannot be told from the target alone: the difference is "
            f"{shown(difference)}."
        )
    over = found.find_metric("moved", "over_random")
    if over is not None and not _above(over):
        yield (
            "The moved adapter does no better than random numbers of the same size: the difference is "
            f"{shown(over)}."
        )
    drift = found.find_metric("moved", "safety_drift")
    if drift is not None and (_above(drift) or _below(drift)):
        way = "more" if _above(drift) else "less"
        yield f"With the moved adapter the target refuses {way} often than alone, by {shown(drift)}."
    few = found.score is not None and difference is not None and difference.n < FEWEST
    if few and difference is not None:
        yield f"Only {difference.n} example(s) were evaluated; intervals of so few say little."


def shown(figure: Metric) -> str:
    """A figure with its interval, for people."""
    if figure.value is None:
        return f"undefined: {figure.reason}"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _resampled(scores: Scores, times: int, seed: int) -> PairedBootstrap:
    return PairedBootstrap(
        {str(subject): each for subject, each in scores.items()}, resamples=times, seed=seed
    )


def _below(figure: Metric) -> bool:
    return figure.high is not None and figure.high < 0.0


def _above(figure: Metric) -> bool:
    return figure.low is not None and figure.low > 0.0


def _figure(subject: Subject, metric: str, found: Interval | Undefined) -> Metric:
    if isinstance(found, Undefined):
        return Metric(subject=subject, metric=metric, value=None, n=found.n, reason=found.reason)
    return Metric(
        subject=subject, metric=metric, value=found.value, low=found.low, high=found.high, n=found.n
    )
