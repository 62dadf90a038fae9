"""Orthogonal Procrustes whose anchors must all keep their side: ⟨a_i R, b_i⟩ > 0 [000, anchor locks].

Flipping signs afterwards would leave the optimum. Instead the weights of the violated anchors are raised and
the weighted problem is solved again, until every lock holds or the rounds are spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transfer.linalg import procrustes

_WEIGHT_FACTOR = 2.0  # a violated anchor weighs twice as much in the next round


@dataclass(frozen=True, slots=True)
class LockedRotation:
    """`rotation` (p, q): A·rotation ≈ B. `violated`: share of anchors on the wrong side, in [0, 1]."""

    rotation: Tensor
    violation_rate: float
    rounds: int


def solve_locked_procrustes(A: Tensor, B: Tensor, rounds: int, start: Tensor | None = None) -> LockedRotation:
    """Rows A (n, p) and B (n, q). Of the rounds' solutions the one with the fewest violations is returned,
    the earliest of equals. `start`: the unweighted solution, where it is known."""
    weights = A.new_ones(A.shape[0], 1)
    best: LockedRotation | None = None
    for round_index in range(rounds + 1):
        rotation = procrustes(weights * A, weights * B) if round_index or start is None else start
        is_violated = ((A @ rotation) * B).sum(1) <= 0.0
        violation_rate = float(is_violated.double().mean()) if is_violated.numel() else 0.0
        if best is None or violation_rate < best.violation_rate:
            best = LockedRotation(rotation, violation_rate, round_index)
        if violation_rate == 0.0:
            break
        weights = torch.where(is_violated[:, None], weights * _WEIGHT_FACTOR, weights)
    if best is None:
        raise ValueError("rounds must not be negative")
    return best
