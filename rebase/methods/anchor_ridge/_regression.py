"""The predictors of [003] in dual form: each gives weights c with Θ̂ = Σ c_i ΔW_i^Y.

With N anchors, source updates X (N×d), target updates Y (N×d') and the adapter's source update x, only
K = XXᵀ, k = Xx and G = YYᵀ are used. When centred (the default), a predictor is the mean of Y plus a
prediction of the residual from x − x̄: c = 1/N + (I − 11ᵀ/N) a. λ is absolute here; `compute_scale` gives its
natural unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rebase.methods.base import Kernels

# Eigenvalues of a kernel below this share of the largest are rounding error.
_MIN_EIGENVALUE_RATIO = 1e-10


def solve_mean(kernels: Kernels) -> Tensor:
    """c_i = 1/N, independent of the adapter: the baseline for every other predictor."""
    n = kernels.K.shape[0]
    return torch.full((n,), 1.0 / n, dtype=torch.float64)


def solve_ridge(kernels: Kernels, penalty: float, *, center: bool = True) -> Tensor:
    """`global_ridge` or, with one site's kernels, `per_tensor_ridge`: a = (K + λI)⁻¹ k."""
    K, k = _center(kernels) if center else (kernels.K, kernels.k)
    eye = torch.eye(K.shape[0], dtype=K.dtype)
    return _uncenter(torch.linalg.solve(K + penalty * eye, k), center)


def solve_pca(kernels: Kernels, components: int, penalty: float, *, center: bool = True) -> Tensor:
    """`per_tensor_pca`: ridge on the leading principal components of the source updates."""
    K, k = _center(kernels) if center else (kernels.K, kernels.k)
    values, vectors = leading_eigenpairs(K, components)
    return _uncenter(vectors @ ((vectors.T @ k) / (values + penalty)), center)


def solve_topk(kernels: Kernels, count: int, penalty: float, *, center: bool = True) -> Tensor:
    """`topk_ridge`: ridge on the `count` anchors with the highest cosine to the adapter's update."""
    norms = kernels.K.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    nearest = torch.sort(kernels.k / norms, descending=True, stable=True).indices[:count].sort().values
    weights = kernels.k.new_zeros(kernels.k.numel())
    weights[nearest] = solve_ridge(select_anchors(kernels, nearest), penalty, center=center)
    return weights


def select_anchors(kernels: Kernels, rows: Tensor) -> Kernels:
    """The kernels restricted to some of the anchors."""
    return Kernels(kernels.K[rows][:, rows], kernels.k[rows], kernels.G[rows][:, rows], kernels.self_inner)


def hold_out(kernels: Kernels, i: int) -> Kernels:
    """The kernels for predicting anchor i from the other anchors."""
    rest = torch.tensor([j for j in range(kernels.k.numel()) if j != i])
    return Kernels(
        kernels.K[rest][:, rest], kernels.K[rest, i], kernels.G[rest][:, rest], float(kernels.K[i, i])
    )


def solve_procrustes(kernels: Kernels, *, center: bool = True) -> Tensor:
    """Orthogonal Procrustes within the span of the anchors: x R with R = argmin ‖X R − Y‖_F, R orthogonal."""
    K, k = _center(kernels) if center else (kernels.K, kernels.k)
    G = center_kernel(kernels.G) if center else kernels.G
    (from_values, P), (to_values, Q) = leading_eigenpairs(K, K.shape[0]), leading_eigenpairs(G, G.shape[0])
    if not from_values.numel() or not to_values.numel():  # all anchors are equal: predict their mean
        return _uncenter(torch.zeros_like(k), center)
    core = from_values.sqrt()[:, None] * (P.T @ Q) * to_values.sqrt()
    U, _, Vh = torch.linalg.svd(core, full_matrices=False)
    coordinates = (P.T @ k) / from_values.sqrt()
    return _uncenter(Q @ ((Vh.T @ (U.T @ coordinates)) / to_values.sqrt()), center)


def compute_scale(kernel: Tensor, *, center: bool = True) -> float:
    """Mean eigenvalue of the (centred) kernel: the unit of λ. 0 if all anchors are equal."""
    raw_mean = float(kernel.diagonal().mean())
    used_mean = float(center_kernel(kernel).diagonal().mean()) if center else raw_mean
    return used_mean if used_mean > _MIN_EIGENVALUE_RATIO * raw_mean else 0.0  # else rounding error


def compute_loo_errors(kernels: Kernels, penalties: Tensor, *, center: bool = True) -> Tensor:
    """Leave-one-out errors ‖y_i − ŷ_{−i}‖ of ridge regression, (penalties, n), with a single `eigh`.

    Ridge is a linear smoother Ŷ = H Y, so the leave-one-out residual is exactly (y_i − ŷ_i)/(1 − h_ii), even
    with the mean refitted, and its norm is √[(I − H) G (I − H)ᵀ]_ii / (1 − h_ii).
    """
    K = center_kernel(kernels.K) if center else kernels.K
    values, vectors = torch.linalg.eigh(K)
    values = values.clamp_min(0.0)
    if center:  # I − H has no component along the mean; remove what rounding leaves of it
        vectors = vectors - vectors.mean(0, keepdim=True)
    errors = []
    for penalty in penalties.tolist():
        residual_matrix = (vectors * (penalty / (values + penalty))) @ vectors.T
        squares = ((residual_matrix @ kernels.G) * residual_matrix).sum(1).clamp_min(0.0)
        errors.append(squares.sqrt() / residual_matrix.diagonal().clamp_min(torch.finfo(torch.float64).tiny))
    return torch.stack(errors)


def center_kernel(kernel: Tensor) -> Tensor:
    """The kernel of centred rows: (I − 11ᵀ/N) K (I − 11ᵀ/N)."""
    rows = kernel.mean(0, keepdim=True)
    return kernel - rows - rows.T + kernel.mean()


def center_row(kernels: Kernels) -> Tensor:
    """k of centred rows; the adapter's update is centred by the anchors' mean."""
    k = kernels.k - kernels.K.mean(1)
    return k - k.mean()


def _center(kernels: Kernels) -> tuple[Tensor, Tensor]:
    return center_kernel(kernels.K), center_row(kernels)


def _uncenter(a: Tensor, center: bool) -> Tensor:
    return a - a.mean() + 1.0 / a.numel() if center else a


def leading_eigenpairs(kernel: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues above rounding error and their eigenvectors, largest first."""
    values, vectors = torch.linalg.eigh(kernel)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = min(count, int(values.gt(_MIN_EIGENVALUE_RATIO * values[:1].clamp_min(0.0)).sum()))
    return values[:kept], vectors[:, :kept]
