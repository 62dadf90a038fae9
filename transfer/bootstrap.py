"""Paired percentile bootstrap [Efron 1979; Efron and Tibshirani 1993, §13.3] of means and of what is made of
them.

Examples are drawn anew, with replacement, as often as there are; every model's scores are averaged over the
same draw, so that what makes an example easy for all of them cancels in differences and shares. An interval
is the middle 95 % of what the draws give. It speaks of other examples of the same kind and of nothing else;
from few examples, or from scores that are all alike, it comes out too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfer.errors import GapTooSmall
from transfer.gap import SMALLEST_GAP, gap_recovered

LEVEL = 0.95
_AT_ONCE = 2**19  # places drawn at a time

Numbers = NDArray[np.float64]


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


class Resampled:
    """Scores of several models on the same n examples, and their means over the same draws.

    `scores`: name → n finite numbers. Raises ValueError when there is no example, or names differ in length.
    Same seed, same draws, whatever the names.
    """

    def __init__(self, scores: Mapping[str, Sequence[float]], *, times: int = 2000, seed: int = 0) -> None:
        lengths = {len(values) for values in scores.values()}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError("every model needs a score for each of the same examples, at least one")
        self.n = lengths.pop()
        columns = [np.array(values, dtype=np.float64) for values in scores.values()]
        self._mean = {name: float(column.mean()) for name, column in zip(scores, columns, strict=True)}
        self._draws = dict(zip(scores, _means(columns, times, seed), strict=True))

    def mean(self, name: str) -> Interval:
        """Of one model's scores."""
        return self._interval(self._mean[name], self._draws[name])

    def difference(self, name: str, base: str) -> Interval:
        """mean(name) − mean(base)."""
        return self._interval(self._mean[name] - self._mean[base], self._draws[name] - self._draws[base])

    def share(self, name: str, base: str, whole: str, whole_base: str) -> Interval | Undefined:
        """(name − base) / (whole − whole_base), all means.

        Undefined when the denominator is below 0.05 or its own interval reaches down to zero: the quotient
        would be noise, or a share of a loss.
        """
        below = self.difference(whole, whole_base)
        if below.value < SMALLEST_GAP:
            return Undefined(f"the gain to be kept is {below.value:+.3f}, below {SMALLEST_GAP}", self.n)
        gains = self._draws[whole] - self._draws[whole_base]
        # A draw without a gain has no quotient: few enough must be left that no end is made of one.
        if not np.quantile(gains, (1 - LEVEL) / 2, method="lower") > 0.0:
            return Undefined(f"the gain to be kept is {below.value:+.3f}, but may be zero", self.n)
        above = self._draws[name] - self._draws[base]
        drawn = above / np.maximum(gains, np.finfo(np.float64).tiny)
        value = (self._mean[name] - self._mean[base]) / below.value
        return self._interval(value, drawn)

    def gap(self, name: str, base: str, oracle: str) -> Interval | Undefined:
        """Gap recovered (`transfer.gap`): the share of the oracle's gain over `base` that `name` has."""
        try:
            gap_recovered(self._mean[name], base=self._mean[base], oracle=self._mean[oracle])
        except GapTooSmall as exc:
            return Undefined(exc.message, self.n)
        return self.share(name, base, oracle, base)

    def _interval(self, value: float, draws: Numbers) -> Interval:
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        # A mean of many equal numbers may miss them by a rounding; the interval must not miss its own figure.
        return Interval(value, min(float(low), value), max(float(high), value), self.n)


def _means(columns: Sequence[Numbers], times: int, seed: int) -> list[Numbers]:
    """For each column of n numbers its means over `times` draws, the same draws for all."""
    n = len(columns[0])
    generator = np.random.default_rng(seed)
    found: list[list[Numbers]] = [[] for _ in columns]
    size = max(1, _AT_ONCE // n)
    for start in range(0, times, size):
        draws = generator.integers(0, n, size=(min(size, times - start), n))
        for parts, column in zip(found, columns, strict=True):
            parts.append(column[draws].mean(1))
    return [np.concatenate(parts) for parts in found]
