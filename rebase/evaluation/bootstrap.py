"""Gap recovered: what share of natively training an adapter on the target a moved one keeps [003, §4].

    (score − base) / (oracle − base)

with `base` the target alone and `oracle` an adapter that was trained on the target. 1 is as good as native, 0
no better than nothing, negative worse. Any score will do that is better when higher: accuracy, minus nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebase.errors import GapTooSmall

MIN_GAP = 0.05


def gap_recovered(score: float, *, base: float, oracle: float) -> float:
    """The share. Raises GapTooSmall when |oracle − base| < 0.05: the quotient would be noise."""
    if abs(oracle - base) < MIN_GAP:
        raise GapTooSmall(
            f"Training on the target changes the score by {oracle - base:+.3f} only; "
            f"at least {MIN_GAP} is needed to speak of a share of it.",
            hint="Use a task that the target cannot do yet, or train the oracle longer.",
        )
    return (score - base) / (oracle - base)


# Paired percentile bootstrap [Efron 1979; Efron and Tibshirani 1993, §13.3] of means and of
# what is made of them. Examples are drawn anew, with replacement, as often as there are; every
# model's scores are averaged over the same draw, so that what makes an example easy for all of them
# cancels in differences and shares. An interval is the middle 95 % of what the draws give. It
# speaks of other examples of the same kind and of nothing else; from few examples, or from scores
# that are all alike, it comes out too narrow.

CONFIDENCE_LEVEL = 0.95
_MAX_INDICES_PER_BATCH = 2**19  # places drawn at a time

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, its 95 % percentile interval, and how many examples it is of."""

    value: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        """Does the interval exclude zero and everything below?"""
        return self.low > 0.0

    @property
    def below_zero(self) -> bool:
        """Does the interval exclude zero and everything above?"""
        return self.high < 0.0


@dataclass(frozen=True, slots=True)
class Undefined:
    """Why there is no figure."""

    reason: str
    n: int


class PairedBootstrap:
    """Scores of several models on the same n examples, and their means over the same draws.

    `scores`: name → n finite numbers. Raises ValueError when there is no example, or names differ in length.
    Same seed, same draws, whatever the names.
    """

    def __init__(
        self, scores: Mapping[str, Sequence[float]], *, resamples: int = 2000, seed: int = 0
    ) -> None:
        lengths = {len(values) for values in scores.values()}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError("every model needs a score for each of the same examples, at least one")
        self.n = lengths.pop()
        score_columns = [np.array(values, dtype=np.float64) for values in scores.values()]
        self._means = {name: float(column.mean()) for name, column in zip(scores, score_columns, strict=True)}
        self._resampled_means = dict(
            zip(scores, _resample_means(score_columns, resamples, seed), strict=True)
        )

    def mean(self, name: str) -> Interval:
        """Of one model's scores."""
        return self._build_interval(self._means[name], self._resampled_means[name])

    def difference(self, name: str, base: str) -> Interval:
        """mean(name) − mean(base)."""
        return self._build_interval(
            self._means[name] - self._means[base], self._resampled_means[name] - self._resampled_means[base]
        )

    def share(self, name: str, base: str, reference: str, reference_base: str) -> Interval | Undefined:
        """(name − base) / (whole − whole_base), all means.

        Undefined when the denominator is below 0.05 or its own interval reaches down to zero: the quotient
        would be noise, or a share of a loss.
        """
        reference_gain = self.difference(reference, reference_base)
        if reference_gain.value < MIN_GAP:
            return Undefined(f"the gain to be kept is {reference_gain.value:+.3f}, below {MIN_GAP}", self.n)
        reference_gains = self._resampled_means[reference] - self._resampled_means[reference_base]
        # A draw without a gain has no quotient: few enough must be left that no end is made of one.
        if not np.quantile(reference_gains, (1 - CONFIDENCE_LEVEL) / 2, method="lower") > 0.0:
            return Undefined(f"the gain to be kept is {reference_gain.value:+.3f}, but may be zero", self.n)
        gains = self._resampled_means[name] - self._resampled_means[base]
        ratios = gains / np.maximum(reference_gains, np.finfo(np.float64).tiny)
        value = (self._means[name] - self._means[base]) / reference_gain.value
        return self._build_interval(value, ratios)

    def gap(self, name: str, base: str, oracle: str) -> Interval | Undefined:
        """Gap recovered: the share of the oracle's gain over `base` that `name` has."""
        try:
            gap_recovered(self._means[name], base=self._means[base], oracle=self._means[oracle])
        except GapTooSmall as exc:
            return Undefined(exc.message, self.n)
        return self.share(name, base, oracle, base)

    def _build_interval(self, value: float, draws: FloatArray) -> Interval:
        low, high = np.quantile(draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
        # A mean of many equal numbers may miss them by a rounding; the interval must not miss its own figure.
        return Interval(value, min(float(low), value), max(float(high), value), self.n)


def _resample_means(columns: Sequence[FloatArray], resamples: int, seed: int) -> list[FloatArray]:
    """For each column of n numbers its means over `times` draws, the same draws for all."""
    n = len(columns[0])
    generator = np.random.default_rng(seed)
    chunks: list[list[FloatArray]] = [[] for _ in columns]
    batch_size = max(1, _MAX_INDICES_PER_BATCH // n)
    for start in range(0, resamples, batch_size):
        draws = generator.integers(0, n, size=(min(batch_size, resamples - start), n))
        for parts, column in zip(chunks, columns, strict=True):
            parts.append(column[draws].mean(1))
    return [np.concatenate(parts) for parts in chunks]
