"""Projects the singular directions of an update separately from its singular values, then recombines them.

Decouple and Orthogonalize (arXiv 2505.15875), adapted to a single update on one base. The paper merges
several LoRAs: it minimally perturbs their factors until those of different tasks are orthogonal, and merges
column norms separately from directions, so that strong tasks do not distort weak ones. Cross-LoRA transfers
one update, so the interference is among its own components: in the source, ΔW = Σ σ_j u_j v_jᵀ with
orthonormal u_j and v_j; a projection shortens them unequally and makes them overlap. The same two steps are
applied to these components:

- orthogonalize: the projected directions x_j = M_out u_j become the orthonormal û_j that minimise
  Σ σ_j² ‖û_j − x_j‖²; likewise v̂_j from y_j. This is the paper's perturbation with an exact constraint; for
  one update it has a closed form, the polar factor of X diag(σ²), so no optimiser or seed is needed.
- decouple: the singular values are kept, ΔW_t ∝ Σ σ_j û_j v̂_jᵀ.

Weighting by σ_j² makes the result depend on ΔW alone: a direction with σ_j = 0, whose u_j is arbitrary, has
no influence, and among equal singular values any choice of u_j gives the same sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebase.lora.linalg import frobenius, inner, thin_svd
from rebase.lora.low_rank import LowRank

# A unit direction that the projection shortens below this is float32 rounding: drop it, do not rescale it.
_MIN_DIRECTION_NORM = 1e-4

# Singular values below this share of the largest are float32 rounding.
_MIN_SINGULAR_RATIO = 1e-7


def decouple(delta: LowRank) -> tuple[LowRank, Tensor]:
    """The same update with B = U diag(σ) (o, p) and A = Vᵀ (p, i), and σ (p,), p = min(r, o, i)."""
    U, S, V = thin_svd(delta)
    return LowRank(U * S, V.T), S


def recouple(projected: LowRank, singular_values: Tensor) -> tuple[LowRank, dict[str, float]]:
    """Σ σ_j û_j v̂_jᵀ with the norm of `projected`, the projected `decouple` factors: B = X diag(σ), A = Yᵀ.

    The singular values are σ up to a common factor. Directions lost on either side are left out. Measures,
    for a non-zero update, `directions_moved`, the number of directions kept, and `direction_cosine`, the
    cosine between `projected` and the result (1 if the projection preserved all proportions).
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
    """The partial isometry nearest to X (k, p) in Σ_j w_j ‖û_j − x_j‖², and its rank, which is that of X."""
    P, lengths, Rh = torch.linalg.svd(X, full_matrices=False)
    rank = int(lengths.gt(_MIN_DIRECTION_NORM).sum())
    significant = (P[:, :rank] * lengths[:rank]) @ Rh[:rank]
    P, _, Rh = torch.linalg.svd(significant * weight, full_matrices=False)
    return P[:, :rank] @ Rh[:rank], rank
