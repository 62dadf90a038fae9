"""Paired bootstrap intervals for mean scores, their differences and ratios, and the gap-recovered metric.

Gap recovered compares a transferred adapter with one trained natively on the target [003, §4]:

    (score − base) / (oracle − base)

with `base` the target alone and `oracle` an adapter that was trained on the target. 1 is as good as native, 0
no better than the target alone, negative worse. Works for any score where higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebase.errors import GapTooSmall

MIN_GAP = 0.05


def gap_recovered(score: float, *, base: float, oracle: float) -> float:
    """The ratio. Raises GapTooSmall if |oracle − base| < 0.05, where it would be noise."""
    if abs(oracle - base) < MIN_GAP:
        raise GapTooSmall(
            f"Training on the target changes the score by only {oracle - base:+.3f}; a share of it needs a "
            f"change of at least {MIN_GAP}.",
            hint="Use a task that the target cannot do yet, or train the oracle longer.",
        )
    return (score - base) / (oracle - base)


# Paired percentile bootstrap [Efron 1979; Efron and Tibshirani 1993, §13.3] of means, differences and
# ratios. Each resample draws n examples with replacement, and all models are averaged over the same ones,
# so that an example's difficulty cancels in differences and ratios. The interval is the middle 95 % of the
# resamples. It covers only sampling of similar examples; with few examples, or near-identical scores, it is
# too narrow.

CONFIDENCE_LEVEL = 0.95
_MAX_INDICES_PER_BATCH = 2**19  # indices drawn at a time

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % percentile interval, over `n` examples."""

    value: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        """Is the whole interval above zero?"""
        return self.low > 0.0

    @property
    def below_zero(self) -> bool:
        """Is the whole interval below zero?"""
        return self.high < 0.0


@dataclass(frozen=True, slots=True)
class Undefined:
    """The reason a value is undefined."""

    reason: str
    n: int


class PairedBootstrap:
    """Scores of several models on the same n examples, resampled together.

    `scores`: name → n finite numbers. Raises ValueError if n is 0 or differs between names. The resamples
    depend only on `seed` and n.
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
        """The mean of one model's scores."""
        return self._build_interval(self._means[name], self._resampled_means[name])

    def difference(self, name: str, base: str) -> Interval:
        """mean(name) − mean(base)."""
        return self._build_interval(
            self._means[name] - self._means[base], self._resampled_means[name] - self._resampled_means[base]
        )

    def share(self, name: str, base: str, reference: str, reference_base: str) -> Interval | Undefined:
        """(name − base) / (reference − reference_base), all means.

        Undefined if the denominator is below 0.05 or its interval includes zero: the ratio would be noise.
        """
        reference_gain = self.difference(reference, reference_base)
        if reference_gain.value < MIN_GAP:
            return Undefined(f"the reference gain is {reference_gain.value:+.3f}, below {MIN_GAP}", self.n)
        reference_gains = self._resampled_means[reference] - self._resampled_means[reference_base]
        # Resamples without a gain have no ratio; they must be too few to reach either end of the interval.
        if not np.quantile(reference_gains, (1 - CONFIDENCE_LEVEL) / 2, method="lower") > 0.0:
            return Undefined(
                f"the reference gain is {reference_gain.value:+.3f}, but its interval includes zero",
                self.n,
            )
        gains = self._resampled_means[name] - self._resampled_means[base]
        ratios = gains / np.maximum(reference_gains, np.finfo(np.float64).tiny)
        value = (self._means[name] - self._means[base]) / reference_gain.value
        return self._build_interval(value, ratios)

    def gap(self, name: str, base: str, oracle: str) -> Interval | Undefined:
        """Gap recovered: the gain of `name` over `base`, relative to the oracle's."""
        try:
            gap_recovered(self._means[name], base=self._means[base], oracle=self._means[oracle])
        except GapTooSmall as exc:
            return Undefined(exc.message, self.n)
        return self.share(name, base, oracle, base)

    def _build_interval(self, value: float, draws: FloatArray) -> Interval:
        low, high = np.quantile(draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
        # With equal scores, rounding could push the value outside its own interval.
        return Interval(value, min(float(low), value), max(float(high), value), self.n)


def _resample_means(columns: Sequence[FloatArray], resamples: int, seed: int) -> list[FloatArray]:
    """For each column of n numbers, its means over the same `resamples` bootstrap samples."""
    n = len(columns[0])
    generator = np.random.default_rng(seed)
    chunks: list[list[FloatArray]] = [[] for _ in columns]
    batch_size = max(1, _MAX_INDICES_PER_BATCH // n)
    for start in range(0, resamples, batch_size):
        draws = generator.integers(0, n, size=(min(batch_size, resamples - start), n))
        for parts, column in zip(chunks, columns, strict=True):
            parts.append(column[draws].mean(1))
    return [np.concatenate(parts) for parts in chunks]
