"""How far to go along one direction: doubling and halving until the loss is lower between two places than at
either, then the lowest point of the parabola through these three."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LineSearchResult:
    """`best`: 0 where nothing was better than not moving; `loss`: there; `tried`: every (length, loss) in the
    order of looking, 0 first."""

    best_length: float
    loss: float
    evaluations: tuple[tuple[float, float], ...]


def search_length(
    loss: Callable[[float], float], start: float, max_evaluations: int = 12
) -> LineSearchResult:
    """The length in (0, ∞) of least loss among at most `most` that are tried, `start` > 0 first.

    What is not finite counts as worse than everything.
    """
    losses: dict[float, float] = {}

    def evaluate(length: float) -> float:
        if length not in losses:
            value = loss(length)
            losses[length] = value if math.isfinite(value) else math.inf
        return losses[length]

    current, loss_at_zero = start, evaluate(0.0)
    if evaluate(current) < loss_at_zero and evaluate(2.0 * current) < evaluate(current):
        while len(losses) < max_evaluations and evaluate(2.0 * current) < evaluate(current):
            current *= 2.0
    else:
        while len(losses) < max_evaluations and (
            evaluate(current) >= loss_at_zero or evaluate(0.5 * current) < evaluate(current)
        ):
            current *= 0.5
    low, middle, high = (losses.get(factor * current, math.inf) for factor in (0.5, 1.0, 2.0))
    curvature = low - 2.0 * middle + high
    if len(losses) < max_evaluations and 0.0 < curvature < math.inf:
        evaluate(current * 2.0 ** (0.5 * (low - high) / curvature))
    best_length = min(losses, key=lambda length: (losses[length], length))
    return LineSearchResult(best_length, losses[best_length], tuple(losses.items()))
