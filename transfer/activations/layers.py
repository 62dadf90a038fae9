"""Which source layer belongs to which target layer, by similarity under order [000, §4.2]."""

from __future__ import annotations

import torch
from torch import Tensor


def find_monotone_map(similarity: Tensor) -> tuple[int, ...]:
    """Target layer → source layer, non-decreasing, that maximises Σ_t similarity[map(t), t].

    similarity: (source layers, target layers), finite. Dynamic programming over targets; of equally good maps
    the one with the lowest source layers wins.
    """
    scores = similarity.double()
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("similarities must be finite")
    sources, targets = scores.shape
    best = scores[:, 0].clone()
    back_pointers: list[list[int]] = []
    for target in range(1, targets):
        pointers, highest, best_source = [], float("-inf"), 0
        new_best = torch.empty_like(best)
        for source in range(sources):
            if float(best[source]) > highest:
                highest, best_source = float(best[source]), source
            new_best[source] = highest + scores[source, target]
            pointers.append(best_source)
        best = new_best
        back_pointers.append(pointers)
    source = int(best.argmax())
    path = [source]
    for pointers in reversed(back_pointers):
        source = pointers[source]
        path.append(source)
    return tuple(reversed(path))


def compute_coverage(similarity: Tensor, threshold: float = 0.7) -> float:
    """Share of target layers whose best source layer is more similar than `threshold`, in [0, 1]."""
    return float((similarity.max(0).values > threshold).double().mean())
