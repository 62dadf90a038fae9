"""Orthogonal Procrustes whose anchors must all keep their side: ⟨a_i R, b_i⟩ > 0 [000, anchor locks].

Flipping signs afterwards would leave the optimum. Instead the weights of the violated anchors are raised and
the weighted problem is solved again, until every lock holds or the rounds are spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transfer.linalg import procrustes

_RAISE = 2.0  # a violated anchor weighs twice as much in the next round


@dataclass(frozen=True, slots=True)
class Locked:
    """`rotation` (p, q): A·rotation ≈ B. `violated`: share of anchors on the wrong side, in [0, 1]."""

    rotation: Tensor
    violated: float
    rounds: int


def locked_procrustes(A: Tensor, B: Tensor, rounds: int, start: Tensor | None = None) -> Locked:
    """Rows A (n, p) and B (n, q). Of the rounds' solutions the one with the fewest violations is returned,
    the earliest of equals. `start`: the unweighted solution, where it is known."""
    weights = A.new_ones(A.shape[0], 1)
    best: Locked | None = None
    for number in range(rounds + 1):
        rotation = procrustes(weights * A, weights * B) if number or start is None else start
        wrong = ((A @ rotation) * B).sum(1) <= 0.0
        violated = float(wrong.double().mean()) if wrong.numel() else 0.0
        if best is None or violated < best.violated:
            best = Locked(rotation, violated, number)
        if violated == 0.0:
            break
        weights = torch.where(wrong[:, None], weights * _RAISE, weights)
    if best is None:
        raise ValueError("rounds must not be negative")
    return best
