"""Inner products between updates, which are all that prediction from a pool needs.

K_ij = Σ_sites ⟨ΔW_i, ΔW_j⟩ with ⟨B_iA_i, B_jA_j⟩ = Σ (B_iᵀB_j) ∘ (A_iA_jᵀ): no dense update is built, and the
factorization does not matter (raw factors of the same ΔW can point in opposite directions). The literal
reading of [003] compares those raw factors: ⟨A_i, A_j⟩ + ⟨B_i, B_j⟩, for equal ranks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import LowRank
from rebase.methods.base import Space

KERNEL_VERSION = 2  # part of every cache key: raise it whenever `gram` may give different bytes


def gram(first: Sequence[LowRank], second: Sequence[LowRank], space: Space = "delta") -> Tensor:
    """Inner products at one site, (len(first), len(second)) float64.

    Raises IncompatiblePair in space `factors` if ranks differ, since the vectors then differ in length.
    """
    if space == "factors":
        _require_equal_ranks([*first, *second])
        left = torch.stack([torch.cat([u.B.double().flatten(), u.A.double().flatten()]) for u in first])
        right = torch.stack([torch.cat([u.B.double().flatten(), u.A.double().flatten()]) for u in second])
        return left @ right.T
    output_products = _stack(first, "B").T @ _stack(second, "B")
    input_products = _stack(first, "A") @ _stack(second, "A").T
    return _sum_blocks(
        output_products.mul_(input_products), [u.rank for u in first], [u.rank for u in second]
    )


def site_kernel(updates: Sequence[LowRank], space: Space = "delta") -> Tensor:
    """⟨ΔW_i, ΔW_j⟩ at one site, (n, n) float64, symmetric to the last bit."""
    products = gram(updates, updates, space)
    return (products + products.T) / 2


def combine_updates(updates: Sequence[LowRank], weights: Tensor, space: Space = "delta") -> LowRank:
    """Σ c_i ΔW_i as exact factors of rank Σ r_i; anchors of weight 0 are left out.

    In space `factors`: Σ c_i B_i and Σ c_i A_i at the anchors' common rank, which is not the same update.
    """
    used = [(updates[number], c) for number, c in enumerate(weights.tolist()) if c != 0.0]
    if not used:
        first = updates[0]
        return LowRank(torch.zeros_like(first.B[:, :1]), torch.zeros_like(first.A[:1]))
    if space == "factors":
        _require_equal_ranks([u for u, _ in used])
        B = torch.stack([u.B.double() * c for u, c in used]).sum(0)
        A = torch.stack([u.A.double() * c for u, c in used]).sum(0)
        return LowRank(B.float(), A.float())
    return LowRank(torch.cat([u.B * c for u, c in used], 1), torch.cat([u.A for u, _ in used], 0))


def _stack(updates: Sequence[LowRank], part: str) -> Tensor:
    """[B_1 … B_n] (o, Σr), or A_1 … A_n stacked vertically (Σr, i), float64."""
    if part == "B":
        return torch.cat([update.B for update in updates], 1).double()
    return torch.cat([update.A for update in updates], 0).double()


def _sum_blocks(products: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Block sums of a (Σrows, Σcolumns) matrix."""
    ends_down, ends_across = list(accumulate(rows)), list(accumulate(columns))
    down = [products[end - n : end].sum(0) for end, n in zip(ends_down, rows, strict=True)]
    across = torch.stack(down)
    return torch.stack(
        [across[:, end - n : end].sum(1) for end, n in zip(ends_across, columns, strict=True)], 1
    )


def _require_equal_ranks(updates: Sequence[LowRank]) -> None:
    ranks = sorted({update.rank for update in updates})
    if len(ranks) > 1:
        raise IncompatiblePair(
            "space=factors compares raw factors, which must have equal ranks; these have "
            f"{', '.join(map(str, ranks))}.",
            hint="Use space=delta.",
            pointer="/method/space",
        )
