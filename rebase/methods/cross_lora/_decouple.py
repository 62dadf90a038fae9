"""Directions and sizes of an update, moved apart and put together again.

Decouple and Orthogonalize (arXiv 2505.15875), read for one update on one base. The paper merges several
LoRAs: it perturbs their factors as little as it can until those of different tasks are orthogonal, and merges
the sizes of columns apart from their directions, so that strong tasks do not bend weak ones. Cross-LoRA moves
one update, and the parts that can get into each other's way are its own: in the source, ΔW = Σ σ_j u_j v_jᵀ
with orthonormal u_j and v_j; a projection shortens them unequally and lets them overlap. So the same two
steps are applied to those parts:

- orthogonalise: the moved directions x_j = M_out u_j become the orthonormal û_j with the least
  Σ σ_j² ‖û_j − x_j‖²; likewise v̂_j from y_j. This is the paper's perturbation with its constraint met
  exactly, which for one update has a closed form, the polar factor of X diag(σ²): no descent, no seed.
- decouple: the sizes come over unmoved, ΔW_t ∝ Σ σ_j û_j v̂_jᵀ.

The squared sizes as weights make the answer depend on ΔW alone: a direction of size zero, whose u_j is
arbitrary, bends nothing, and within equal sizes any choice of u_j gives the same sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebase.lora.linalg import frobenius, inner, thin_svd
from rebase.lora.low_rank import LowRank

# Of a unit direction, a shorter remainder is rounding of float32 factors: it is given up, not stretched.
_MIN_DIRECTION_NORM = 1e-4

# Below this share of the largest, a direction's size is rounding of float32 factors.
_MIN_SINGULAR_RATIO = 1e-7


def decouple(delta: LowRank) -> tuple[LowRank, Tensor]:
    """The same update with B = U diag(σ) (o, p) and A = Vᵀ (p, i), and σ (p,), p = min(r, o, i)."""
    U, S, V = thin_svd(delta)
    return LowRank(U * S, V.T), S


def recouple(projected: LowRank, singular_values: Tensor) -> tuple[LowRank, dict[str, float]]:
    """Σ σ_j û_j v̂_jᵀ, as long as `moved`, from what became of `decouple`'s factors: B = X diag(σ), A = Yᵀ.

    Singular values are σ up to that common factor. Directions that do not arrive on both sides are left out.
    Measured: `directions_moved`, how many arrive; `direction_cosine`, the cosine between `moved` and the
    result (1: the projection had kept all proportions), both only for an update that is not zero.
    """
    norm = frobenius(projected)
    if norm == 0.0:
        return projected, {}
    significant = singular_values > _MIN_SINGULAR_RATIO * singular_values[0]
    weight = torch.where(significant, singular_values, 0.0).double() / float(singular_values[0])
    X = torch.where(
        significant, projected.B.double() / torch.where(significant, singular_values, 1.0).double(), 0.0
    )
    Y = torch.where(significant, projected.A.T.double(), 0.0)
    (left, left_rank), (right, right_rank) = (
        _nearest_isometry(X, weight.square()),
        _nearest_isometry(Y, weight.square()),
    )
    orthogonalized = LowRank(left * weight, right.T)
    orthogonalized_norm = frobenius(orthogonalized)
    if orthogonalized_norm == 0.0:
        return projected.scaled(0.0), {"directions_moved": 0.0, "direction_cosine": 0.0}
    result = LowRank(
        (orthogonalized.B * (norm / orthogonalized_norm)).to(projected.B.dtype),
        orthogonalized.A.to(projected.A.dtype),
    )
    cosine = inner(projected, result) / (norm * frobenius(result))
    return result, {
        "directions_moved": float(min(left_rank, right_rank)),
        "direction_cosine": min(cosine, 1.0),
    }


def _nearest_isometry(X: Tensor, weight: Tensor) -> tuple[Tensor, int]:
    """The partial isometry nearest to X (k, p) in Σ_j w_j ‖û_j − x_j‖², and its rank: that of X."""
    P, lengths, Rh = torch.linalg.svd(X, full_matrices=False)
    rank = int(lengths.gt(_MIN_DIRECTION_NORM).sum())
    significant = (P[:, :rank] * lengths[:rank]) @ Rh[:rank]
    P, _, Rh = torch.linalg.svd(significant * weight, full_matrices=False)
    return P[:, :rank] @ Rh[:rank], rank
