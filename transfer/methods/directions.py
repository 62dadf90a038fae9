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

from transfer.interface import LowRank
from transfer.linalg import frobenius, inner, thin_svd

# Of a unit direction, a shorter remainder is rounding of float32 factors: it is given up, not stretched.
_REACHED = 1e-4

# Below this share of the largest, a direction's size is rounding of float32 factors.
_SIZELESS = 1e-7


def decouple(delta: LowRank) -> tuple[LowRank, Tensor]:
    """The same update with B = U diag(σ) (o, p) and A = Vᵀ (p, i), and σ (p,), p = min(r, o, i)."""
    U, S, V = thin_svd(delta)
    return LowRank(U * S, V.T), S


def recouple(moved: LowRank, sizes: Tensor) -> tuple[LowRank, dict[str, float]]:
    """Σ σ_j û_j v̂_jᵀ, as long as `moved`, from what became of `decouple`'s factors: B = X diag(σ), A = Yᵀ.

    Singular values are σ up to that common factor. Directions that do not arrive on both sides are left out.
    Measured: `directions_moved`, how many arrive; `direction_cosine`, the cosine between `moved` and the
    result (1: the projection had kept all proportions), both only for an update that is not zero.
    """
    length = frobenius(moved)
    if length == 0.0:
        return moved, {}
    solid = sizes > _SIZELESS * sizes[0]
    weight = torch.where(solid, sizes, 0.0).double() / float(sizes[0])
    X = torch.where(solid, moved.B.double() / torch.where(solid, sizes, 1.0).double(), 0.0)
    Y = torch.where(solid, moved.A.T.double(), 0.0)
    (left, written), (right, read) = _orthonormal(X, weight.square()), _orthonormal(Y, weight.square())
    straight = LowRank(left * weight, right.T)
    found = frobenius(straight)
    if found == 0.0:
        return moved.scaled(0.0), {"directions_moved": 0.0, "direction_cosine": 0.0}
    result = LowRank((straight.B * (length / found)).to(moved.B.dtype), straight.A.to(moved.A.dtype))
    cosine = inner(moved, result) / (length * frobenius(result))
    return result, {"directions_moved": float(min(written, read)), "direction_cosine": min(cosine, 1.0)}


def _orthonormal(X: Tensor, weight: Tensor) -> tuple[Tensor, int]:
    """The partial isometry nearest to X (k, p) in Σ_j w_j ‖û_j − x_j‖², and its rank: that of X."""
    P, lengths, Rh = torch.linalg.svd(X, full_matrices=False)
    rank = int(lengths.gt(_REACHED).sum())
    reached = (P[:, :rank] * lengths[:rank]) @ Rh[:rank]
    P, _, Rh = torch.linalg.svd(reached * weight, full_matrices=False)
    return P[:, :rank] @ Rh[:rank], rank
