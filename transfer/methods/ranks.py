"""Several ranks of Cross-LoRA from one factorisation: the leading k of K directions, and what each k keeps.

Singular directions are nested, so factors at the largest rank hold those of every smaller one. They agree
with factors computed at k itself to float32 rounding, not to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from transfer.interface import Factors, LowRank
from transfer.linalg import frobenius


def leading(factors: Factors, k: int) -> Factors:
    """The first k directions, or all there are; `energy` is scaled to what these hold of ‖W‖²_F.

    Copies, so that later products see one memory layout whatever was asked for.
    """
    if k >= factors.S.numel():
        return factors
    squares = factors.S.double().square()
    total = float(squares.sum())
    share = float(squares[:k].sum()) / total if total > 0.0 else 0.0
    U, V = factors.U[:, :k].contiguous(), factors.V[:, :k].contiguous()
    return Factors(U, factors.S[:k].contiguous(), V, factors.energy * share)


def leading_coordinates(coordinates: LowRank, k: int) -> LowRank:
    """U_kᵀ ΔW V_k out of U_Kᵀ ΔW V_K, both as factors."""
    return LowRank(coordinates.B[:k].contiguous(), coordinates.A[:, :k].contiguous())


def swept(
    ranks: Iterable[int],
    before: float,
    coordinates: LowRank,
    source: Factors,
    target: Factors,
    *,
    exact_norm: bool,
) -> dict[str, float]:
    """What each rank would keep: `energy_source_at_k`, `energy_target_at_k`, and of an update of norm
    `before` > 0 `energy_kept_at_k`. A rank beyond the weight's own counts as all of its directions.

    Nothing is aligned, so a rank costs one small product. `exact_norm`: the result at k has the size of its
    leading min(k_s, k_t) coordinates, as without a fitted rotation; then `norm_ratio_at_k` follows.
    """
    measured: dict[str, float] = {}
    for k in ranks:
        measured[f"energy_source_at_{k}"] = leading(source, k).energy
        measured[f"energy_target_at_{k}"] = leading(target, k).energy
        if before > 0.0:
            share = frobenius(leading_coordinates(coordinates, k)) / before
            measured[f"energy_kept_at_{k}"] = min(share**2, 1.0)
            if exact_norm:
                both = min(k, target.S.numel(), source.S.numel())
                measured[f"norm_ratio_at_{k}"] = frobenius(leading_coordinates(coordinates, both)) / before
    return measured


def energies(
    before: float, kept: LowRank, moved: LowRank, source: Factors, target: Factors
) -> dict[str, float]:
    """How much of both weights the factors hold and of the update survives; ratios need a non-zero update."""
    after = frobenius(moved)
    measured = {
        "energy_source": source.energy,
        "energy_target": target.energy,
        "update_norm": after,
    }
    if before > 0.0:
        measured |= {"energy_kept": min((frobenius(kept) / before) ** 2, 1.0), "norm_ratio": after / before}
    for name, ours, theirs in (("", source.U, target.U), ("_in", source.V, target.V)):
        if ours.shape[0] == theirs.shape[0]:
            k = min(ours.shape[1], theirs.shape[1])
            overlap = torch.linalg.matrix_norm(ours.T @ theirs).square() / k
            measured[f"subspace_overlap{name}"] = min(float(overlap), 1.0)
    return measured
