"""Debiased linear CKA between two sets of paired rows [000, §4.2; Song et al. 2012, Nguyen et al. 2021].

The standard (biased) estimator is near 1 for any two wide matrices with few rows: 0.98 for independent
Gaussians at n = 65. HSIC₁ is unbiased; over minibatches its terms are averaged first and divided once at the
end, so any number of rows needs only the memory of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

MIN_ROWS = 4  # HSIC₁ divides by n − 3


def hsic1(K: Tensor, L: Tensor) -> Tensor:
    """Unbiased HSIC of two Gram matrices (n, n), n ≥ 4, ignoring their diagonals. Batches: (…, n, n).

    Raises ValueError for n < 4.
    """
    n = K.shape[-1]
    if n < MIN_ROWS:
        raise ValueError(f"HSIC needs at least {MIN_ROWS} rows, not {n}")
    off_diagonal = 1.0 - torch.eye(n, dtype=K.dtype, device=K.device)
    K, L = K * off_diagonal, L * off_diagonal
    rows_k, rows_l = K.sum(-1), L.sum(-1)
    trace = (K * L).sum((-1, -2))
    means = rows_k.sum(-1) * rows_l.sum(-1) / ((n - 1) * (n - 2))
    cross = 2.0 * (rows_k * rows_l).sum(-1) / (n - 2)
    return (trace + means - cross) / (n * (n - 3))


def cka(X: Tensor, Y: Tensor) -> float:
    """Debiased CKA of paired rows X (n, p) and Y (n, q): about 0 if independent, 1 for equal geometry.

    It can be slightly negative. NaN if either side has no variance.
    """
    return cka_from_batches([(X, Y)])


def cka_from_batches(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Debiased CKA over minibatches of paired rows."""
    cross = left = right = 0.0
    for X, Y in batches:
        K, L = _scaled_gram(X), _scaled_gram(Y)
        cross += float(hsic1(K, L))
        left += float(hsic1(K, K))
        right += float(hsic1(L, L))
    return _ratio(cross, left, right)


def biased_cka(X: Tensor, Y: Tensor) -> float:
    """The standard estimator, for comparison with published values: ‖Y_cᵀX_c‖² / (‖X_cᵀX_c‖ ‖Y_cᵀY_c‖)."""
    X, Y = X.double() - X.double().mean(0), Y.double() - Y.double().mean(0)
    K, L = X @ X.T, Y @ Y.T
    return _ratio(float((K * L).sum()), float((K * K).sum()), float((L * L).sum()))


class LayerSimilarity:
    """Debiased CKA of every layer of one model with every layer of another, batch by batch.

    Memory: the running sums and one batch's Gram matrices, (layers, n, n) per side.
    """

    def __init__(self, source_layers: int, target_layers: int) -> None:
        self._cross = torch.zeros(source_layers, target_layers, dtype=torch.float64)
        self._source = torch.zeros(source_layers, dtype=torch.float64)
        self._target = torch.zeros(target_layers, dtype=torch.float64)

    def add(self, source: list[Tensor], target: list[Tensor]) -> None:
        """Add one batch: paired rows (n, width) per layer, with the same n ≥ 4 for all layers."""
        K, L = (torch.stack([_scaled_gram(rows) for rows in side]) for side in (source, target))
        self._source += hsic1(K, K).cpu()
        self._target += hsic1(L, L).cpu()
        for layer in range(len(source)):
            self._cross[layer] += hsic1(K[layer].expand_as(L), L).cpu()

    def compute_matrix(self) -> Tensor:
        """(source layers, target layers) float64; 0 where a layer has no variance."""
        norms = (self._source.clamp_min(0.0)[:, None] * self._target.clamp_min(0.0)[None]).sqrt()
        return torch.where(norms > 0.0, self._cross / norms.clamp_min(1e-300), 0.0)


def drop_outliers(rows: Tensor, times: float = 50.0) -> Tensor:
    """Rows (n, d) without massive-activation dimensions, whose mean square exceeds `times` the median.

    A handful of such dimensions account for nearly all of a layer's norm but say nothing about its geometry;
    they would dominate the similarity.
    """
    return rows[:, ~find_outliers(rows, times)]


def find_outliers(rows: Tensor, times: float = 50.0) -> Tensor:
    """Mask of the massive-activation dimensions of rows (n, d): (d,) bool."""
    power = rows.double().square().mean(0)
    return power > times * power.median()


def _scaled_gram(rows: Tensor) -> Tensor:
    """X Xᵀ in float64, scaled to mean diagonal 1 so that batches are weighted equally."""
    K = rows.double() @ rows.double().T
    mean = K.diagonal().mean()
    return K / mean if float(mean) > 0.0 else K


def _ratio(cross: float, left: float, right: float) -> float:
    product = left * right
    return cross / math.sqrt(product) if left > 0.0 and right > 0.0 else math.nan


# Monotone layer matching by similarity [000, §4.2].


def find_monotone_map(similarity: Tensor) -> tuple[int, ...]:
    """The non-decreasing map, target layer → source layer, that maximises Σ_t similarity[map(t), t].

    similarity: (source layers, target layers), finite, else ValueError. Dynamic programming over target
    layers; ties go to the lowest source layers.
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
