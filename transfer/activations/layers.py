"""Which source layer belongs to which target layer, by similarity under order [000, §4.2]."""

from __future__ import annotations

import torch
from torch import Tensor


def monotone_map(similarity: Tensor) -> tuple[int, ...]:
    """Target layer → source layer, non-decreasing, that maximises Σ_t similarity[map(t), t].

    similarity: (source layers, target layers), finite. Dynamic programming over targets; of equally good maps
    the one with the lowest source layers wins.
    """
    scores = similarity.double()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("similarities must be finite")
    sources, targets = scores.shape
    best = scores[:, 0].clone()
    came_from: list[list[int]] = []
    for target in range(1, targets):
        back, highest, at = [], float("-inf"), 0
        reach = torch.empty_like(best)
        for source in range(sources):
            if float(best[source]) > highest:
                highest, at = float(best[source]), source
            reach[source] = highest + scores[source, target]
            back.append(at)
        best = reach
        came_from.append(back)
    source = int(best.argmax())
    chosen = [source]
    for back in reversed(came_from):
        source = back[source]
        chosen.append(source)
    return tuple(reversed(chosen))


def coverage(similarity: Tensor, threshold: float = 0.7) -> float:
    """Share of target layers whose best source layer is more similar than `threshold`, in [0, 1]."""
    return float((similarity.max(0).values > threshold).double().mean())
