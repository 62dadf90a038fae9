"""Linear algebra on factored updates and base weights. Nothing here materialises B A.

Every function is deterministic: same inputs, same bytes on one machine. Singular vectors have a fixed sign:
the largest-magnitude entry of each left vector is positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import Factors, LowRank

# Part of every cache key: increment it whenever `factorize` may return different bytes for the same weight.
FACTORS_VERSION = 1

# Left vectors below this share of the largest singular value are rounding noise of the float32 image W·V.
_RANK_TOLERANCE = 1e-5

# Extra directions computed beyond the requested k. Near the cut, close eigenvalues mix within float32
# rounding, and the Rayleigh–Ritz step can only separate directions inside the computed subspace.
_OVERSAMPLING = 32

# Above this rank an update is a sum of many, and Gram matrices are cheaper than QR.
_MIN_GRAM_RANK = 128
_GRAM_TOLERANCE = 1e-14  # squares of singular values below this share are float64 rounding
_MIN_DIVISOR = 1e-300

# Float32 rows have noise near 6e-8 of their largest direction, so products of two noise directions are near
# 4e-15 of the largest product: anything below this share is treated as noise.
_PROCRUSTES_TOLERANCE = 1e-12


def thin_svd(delta: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Exact SVD of B A as U (o, p), S (p,), V (i, p), p = min(r, o, i), float32, S descending.

    QR of B and of Aᵀ reduces the problem to the SVD of an r×r core, computed in float64 at negligible cost.
    """
    Q_out, R_out = torch.linalg.qr(delta.B.double())
    Q_in, R_in = torch.linalg.qr(delta.A.double().T)
    U, S, Vh = torch.linalg.svd(R_out @ R_in.T, full_matrices=False)
    U, V = _fix_gauge(Q_out @ U, Q_in @ Vh.T)
    return U.float(), S.float(), V.float()


def frobenius(delta: LowRank) -> float:
    """‖B A‖_F from r×r Gram matrices."""
    return math.sqrt(max(inner(delta, delta), 0.0))


def inner(a: LowRank, b: LowRank) -> float:
    """⟨B_a A_a, B_b A_b⟩_F = Σ (B_aᵀB_b) ∘ (A_aA_bᵀ); independent of how either update is factored."""
    left = a.B.double().T @ b.B.double()
    right = a.A.double() @ b.A.double().T
    return float((left * right).sum())


def truncate(delta: LowRank, rank: int) -> tuple[LowRank, float]:
    """Best approximation of rank ≤ `rank`, and the share of ‖ΔW‖²_F lost, in [0, 1].

    Each factor gets √S, so that neither overflows in half precision.
    """
    if _MIN_GRAM_RANK < delta.rank < min(delta.shape) and 2 * rank < delta.rank:  # otherwise QR is cheaper
        return _truncate_by_gram(delta, rank)
    U, S, V = thin_svd(delta)
    kept = S[:rank]
    root = kept.sqrt()
    total = float(S.double().square().sum())
    lost_energy = float(S[rank:].double().square().sum()) / total if total > 0.0 else 0.0
    return LowRank(U[:, :rank] * root, root[:, None] * V[:, :rank].T), lost_energy


def _truncate_by_gram(delta: LowRank, rank: int) -> tuple[LowRank, float]:
    """`truncate` for a sum of many updates when few directions are kept: two eigenproblems of r×r Gram
    matrices instead of QR of both factors, half the time at r = 800. With BᵀB = RᵀR, the eigenvalues of
    R (A Aᵀ) Rᵀ are the squared singular values. Float64 resolves those above 1e-7 of the largest.
    """
    B, A = delta.B.double(), delta.A.double()
    values, vectors = torch.linalg.eigh(B.T @ B)
    root = values.clamp_min(0.0).sqrt()
    R = root[:, None] * vectors.T
    squares, W = torch.linalg.eigh(R @ (A @ A.T) @ R.T)
    total = float(squares.clamp_min(0.0).sum())
    kept, W = squares[-rank:].flip(0).clamp_min(0.0), W[:, -rank:].flip(1)
    is_significant = kept > _GRAM_TOLERANCE * kept[:1]
    kept, W = kept * is_significant, W * is_significant
    inverse = torch.where(root > _GRAM_TOLERANCE**0.5 * root[-1], 1.0 / root.clamp_min(_MIN_DIVISOR), 0.0)
    U = B @ (vectors @ (inverse[:, None] * W))
    half = kept.sqrt().sqrt()
    SV = (W.T @ R) @ A  # rows σ_j v_jᵀ
    inverse_half = torch.where(half > 0.0, 1.0 / half.clamp_min(_MIN_DIVISOR), 0.0)
    U, V = _fix_gauge(U, SV.T)
    lost_energy = 1.0 - float(kept.sum()) / total if total > 0.0 else 0.0
    return LowRank((U * half).float(), (inverse_half[:, None] * V.T).float()), max(0.0, lost_energy)


def factorize(W: Tensor, rank: int) -> Factors:
    """Truncated SVD of a base weight W (o, i): U (o, k), S (k,), V (i, k), k = min(rank, o, i), float32.

    U and V are orthonormal to 1e-5 even if W is rank-deficient. Raises UnsupportedModel on NaN or Inf.
    """
    W = W.float()
    o, i = W.shape
    k = min(rank, o, i)
    if o < i:
        V, S, U, energy = _compute_leading_triplets(W.T, k)
    else:
        U, S, V, energy = _compute_leading_triplets(W, k)
    U, V = _fix_gauge(U, V)
    return Factors(U.contiguous(), S, V.contiguous(), energy)


def compress(update: Tensor, rank: int) -> tuple[LowRank, float]:
    """Best approximation of rank ≤ `rank` to a dense update (o, i), and the share of ‖ΔW‖²_F lost.

    The dense counterpart of `truncate`, with √S split the same way. A zero update loses nothing.
    """
    factors = factorize(update, rank)
    root = factors.S.sqrt()
    lost_energy = 1.0 - factors.energy if bool(factors.S.any()) else 0.0
    return LowRank(factors.U * root, root[:, None] * factors.V.T), lost_energy


def procrustes(X: Tensor, Y: Tensor) -> Tensor:
    """R (p, q) with orthonormal rows or columns on the span of the data, minimising ‖X R − Y‖_F.

    X: (n, p), Y: (n, q), paired rows. Directions that the data does not cover (n < p, or XᵀY singular) map to
    zero, which makes the result a partial isometry. Computed in float64, since XᵀY squares the condition
    number.
    """
    P, D, Qh = torch.linalg.svd(X.double().T @ Y.double(), full_matrices=False)
    rotation: Tensor = (P * D.gt(D[:1] * _PROCRUSTES_TOLERANCE)) @ Qh
    return rotation.to(X.dtype)


def _compute_leading_triplets(W: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Top-k singular triplets of a tall W (m ≥ n): left (m, k), values (k,), right (n, k); and their energy.

    The n×n Gram matrix gives the leading right subspace. Squaring loses half of the digits, so one
    Rayleigh–Ritz step in float64, on the image of that subspace under W, separates close singular values and
    makes the left side orthonormal.
    """
    gram = _compute_lower_gram(W)
    total = float(gram.diagonal().sum(dtype=torch.float64))
    if not math.isfinite(total):
        raise UnsupportedModel(
            "A base weight contains NaN or Inf, so it has no singular value decomposition."
        )
    basis = torch.linalg.eigh(gram, UPLO="L").eigenvectors[:, -(k + _OVERSAMPLING) :].double()
    # The eigenvectors are orthonormal only to 1e-6, which would mix close directions by 1e-4 or more. One
    # Newton step towards the orthonormal factor squares that error.
    basis = basis @ (1.5 * torch.eye(basis.shape[1]).to(basis) - 0.5 * basis.T @ basis)
    image = (W @ basis.float()).double()
    squares, rotation = torch.linalg.eigh(image.T @ image)
    S, rotation = squares.flip(0)[:k].clamp_min(0.0).sqrt(), rotation.flip(1)[:, :k]
    left = image @ rotation / S.clamp_min(torch.finfo(S.dtype).tiny)
    numerical_rank = int(S.gt(_RANK_TOLERANCE * S[0]).sum())
    if numerical_rank < k:
        left = _complete_basis(left, numerical_rank)
    energy = min(float(S.square().sum()) / total, 1.0) if total > 0.0 else 0.0
    return left.float(), S.float(), (basis @ rotation).float(), energy


def _compute_lower_gram(W: Tensor, blocks: int = 8) -> Tensor:
    """WᵀW with only the lower block triangle filled, which is all `eigh` reads: 9/16 of the work."""
    n = W.shape[1]
    gram = W.new_zeros(n, n)
    step = -(-n // blocks)
    for start in range(0, n, step):
        stop = min(start + step, n)
        torch.mm(W[:, start:stop].T, W[:, :stop], out=gram[start:stop, :stop])
    return gram


def _complete_basis(left: Tensor, numerical_rank: int) -> Tensor:
    """Replace the noise columns after `solid` with directions orthonormal to the rest (σ ≈ 0: any will do).

    Householder QR gives an orthonormal Q whatever the noise columns contain, and spans the solid ones first.
    """
    Q = torch.linalg.qr(left).Q
    return torch.cat([left[:, :numerical_rank], Q[:, numerical_rank:]], dim=1)


def _fix_gauge(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Flip (u_j, v_j) together so that the largest-magnitude entry of u_j is positive."""
    peak = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(peak < 0, -1.0, 1.0).to(U)
    return U * signs, V * signs
