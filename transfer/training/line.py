"""How far to go along one direction: doubling and halving until the loss is lower between two places than at
either, then the lowest point of the parabola through these three."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """`best`: 0 where nothing was better than not moving; `loss`: there; `tried`: every (length, loss) in the
    order of looking, 0 first."""

    best: float
    loss: float
    tried: tuple[tuple[float, float], ...]


def search(loss: Callable[[float], float], start: float, most: int = 12) -> Line:
    """The length in (0, ∞) of least loss among at most `most` that are tried, `start` > 0 first.

    What is not finite counts as worse than everything.
    """
    seen: dict[float, float] = {}

    def at(length: float) -> float:
        if length not in seen:
            value = loss(length)
            seen[length] = value if math.isfinite(value) else math.inf
        return seen[length]

    here, still = start, at(0.0)
    if at(here) < still and at(2.0 * here) < at(here):
        while len(seen) < most and at(2.0 * here) < at(here):
            here *= 2.0
    else:
        while len(seen) < most and (at(here) >= still or at(0.5 * here) < at(here)):
            here *= 0.5
    low, middle, high = (seen.get(factor * here, math.inf) for factor in (0.5, 1.0, 2.0))
    bend = low - 2.0 * middle + high
    if len(seen) < most and 0.0 < bend < math.inf:
        at(here * 2.0 ** (0.5 * (low - high) / bend))
    best = min(seen, key=lambda length: (seen[length], length))
    return Line(best, seen[best], tuple(seen.items()))
