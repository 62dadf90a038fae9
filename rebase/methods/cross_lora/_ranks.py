"""Evaluates several ranks of Cross-LoRA from one factorization at the largest rank.

Singular directions are nested, so the factors at the largest rank contain those of every smaller rank k. They
agree with factors computed at k to float32 rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import Factors, LowRank


def truncate_factors(factors: Factors, k: int) -> Factors:
    """The first k directions, or all if there are fewer; `energy` is their share of ‖W‖²_F.

    Copies, so that later products see the same memory layout at every rank.
    """
    if k >= factors.S.numel():
        return factors
    squares = factors.S.double().square()
    total = float(squares.sum())
    share = float(squares[:k].sum()) / total if total > 0.0 else 0.0
    U, V = factors.U[:, :k].contiguous(), factors.V[:, :k].contiguous()
    return Factors(U, factors.S[:k].contiguous(), V, factors.energy * share)


def truncate_coordinates(coordinates: LowRank, k: int) -> LowRank:
    """U_kᵀ ΔW V_k from U_Kᵀ ΔW V_K, both as factors."""
    return LowRank(coordinates.B[:k].contiguous(), coordinates.A[:, :k].contiguous())


def sweep_metrics(
    ranks: Iterable[int],
    norm_before: float,
    coordinates: LowRank,
    source: Factors,
    target: Factors,
    *,
    exact_norm: bool,
) -> dict[str, float]:
    """What each rank k would keep: `energy_source_at_k`, `energy_target_at_k` and, if `norm_before` > 0,
    `energy_kept_at_k`. A rank above the weight's rank means all of its directions.

    Nothing is aligned, so each rank costs one small product. `exact_norm`: the result at k has the norm of
    its leading min(k_s, k_t) coordinates, as without a fitted rotation; adds `norm_ratio_at_k`.
    """
    measured: dict[str, float] = {}
    for k in ranks:
        measured[f"energy_source_at_{k}"] = truncate_factors(source, k).energy
        measured[f"energy_target_at_{k}"] = truncate_factors(target, k).energy
        if norm_before > 0.0:
            share = frobenius(truncate_coordinates(coordinates, k)) / norm_before
            measured[f"energy_kept_at_{k}"] = min(share**2, 1.0)
            if exact_norm:
                common_rank = min(k, target.S.numel(), source.S.numel())
                measured[f"norm_ratio_at_{k}"] = (
                    frobenius(truncate_coordinates(coordinates, common_rank)) / norm_before
                )
    return measured


def energy_metrics(
    norm_before: float, kept: LowRank, result: LowRank, source: Factors, target: Factors
) -> dict[str, float]:
    """Shares of both weights and of the update that are kept; ratios only for a non-zero update."""
    norm_after = frobenius(result)
    measured = {
        "energy_source": source.energy,
        "energy_target": target.energy,
        "update_norm": norm_after,
    }
    if norm_before > 0.0:
        measured |= {
            "energy_kept": min((frobenius(kept) / norm_before) ** 2, 1.0),
            "norm_ratio": norm_after / norm_before,
        }
    for name, source_basis, target_basis in (("", source.U, target.U), ("_in", source.V, target.V)):
        if source_basis.shape[0] == target_basis.shape[0]:
            k = min(source_basis.shape[1], target_basis.shape[1])
            overlap = torch.linalg.matrix_norm(source_basis.T @ target_basis).square() / k
            measured[f"subspace_overlap{name}"] = min(float(overlap), 1.0)
    return measured
