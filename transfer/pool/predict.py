"""The predictors of [003] in the dual: each gives weights c with Θ̂ = Σ c_i ΔW_i^Y.

With N anchors, X (N×d) the source updates, Y (N×d') the target updates and x the held-out source update, only
K = XXᵀ, k = Xx and G = YYᵀ are used. Centred, as by default, a predictor is the mean of Y plus a prediction
of the residual from x − x̄: c = 1/N + (I − 11ᵀ/N) a. λ is absolute here; `scale_of` gives its natural unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Directions of a kernel below this share of its largest eigenvalue are rounding, not data.
_NULL = 1e-10


@dataclass(frozen=True, slots=True)
class Kernels:
    """K: (n, n) between source anchors; k: (n,) from them to the held-out one; G: (n, n) between targets."""

    K: Tensor
    k: Tensor
    G: Tensor


def mean(kernels: Kernels) -> Tensor:
    """c_i = 1/N, whatever the held-out adapter is: what any other predictor has to beat."""
    n = kernels.K.shape[0]
    return torch.full((n,), 1.0 / n, dtype=torch.float64)


def ridge(kernels: Kernels, penalty: float, *, center: bool = True) -> Tensor:
    """`global_ridge`; with one site's kernels `per_tensor_ridge`: a = (K + λI)⁻¹ k."""
    K, k = _centred(kernels) if center else (kernels.K, kernels.k)
    eye = torch.eye(K.shape[0], dtype=K.dtype)
    return _uncentred(torch.linalg.solve(K + penalty * eye, k), center)


def pca(kernels: Kernels, components: int, penalty: float, *, center: bool = True) -> Tensor:
    """`per_tensor_pca`: ridge on the leading principal components of the sources alone."""
    K, k = _centred(kernels) if center else (kernels.K, kernels.k)
    values, vectors = _leading(K, components)
    return _uncentred(vectors @ ((vectors.T @ k) / (values + penalty)), center)


def topk(kernels: Kernels, own_norm: float, count: int, penalty: float, *, center: bool = True) -> Tensor:
    """`topk_ridge`: ridge on the `count` anchors of highest cosine to the held-out update."""
    n = kernels.K.shape[0]
    cosines = kernels.k / (kernels.K.diagonal().sqrt() * own_norm).clamp_min(torch.finfo(torch.float64).tiny)
    near = torch.sort(cosines, descending=True, stable=True).indices[:count].sort().values
    part = Kernels(kernels.K[near][:, near], kernels.k[near], kernels.G[near][:, near])
    weights = torch.zeros(n, dtype=torch.float64)
    weights[near] = ridge(part, penalty, center=center)
    return weights


def procrustes(kernels: Kernels, *, center: bool = True) -> Tensor:
    """x R with R = argmin over orthogonal R of ‖X R − Y‖_F, within the span of the anchors."""
    K, k = _centred(kernels) if center else (kernels.K, kernels.k)
    G = _twice(kernels.G) if center else kernels.G
    (from_values, P), (to_values, Q) = _leading(K, K.shape[0]), _leading(G, G.shape[0])
    core = from_values.sqrt()[:, None] * (P.T @ Q) * to_values.sqrt()
    U, _, Vh = torch.linalg.svd(core, full_matrices=False)
    coordinates = (P.T @ k) / from_values.sqrt()
    return _uncentred(Q @ ((Vh.T @ (U.T @ coordinates)) / to_values.sqrt()), center)


def scale_of(kernel: Tensor, *, center: bool = True) -> float:
    """Mean eigenvalue of the (centred) kernel: the unit in which λ is given."""
    used = _twice(kernel) if center else kernel
    return float(used.diagonal().mean())


def leave_one_out(kernels: Kernels, penalties: Tensor, *, center: bool = True) -> Tensor:
    """Error of each anchor when ridge has not seen it, ‖y_i − ŷ_{−i}‖: (penalties, n). One `eigh` for all.

    Ridge is a linear smoother Ŷ = H Y, so the held-out residual is (y_i − ŷ_i)/(1 − h_ii) exactly, the mean's
    own refit included, and its norm is √[(I − H) G (I − H)ᵀ]_ii / (1 − h_ii).
    """
    n = kernels.K.shape[0]
    K = _twice(kernels.K) if center else kernels.K
    values, vectors = torch.linalg.eigh(K)
    values = values.clamp_min(0.0)
    base = torch.full((n, n), 1.0 / n if center else 0.0, dtype=torch.float64)
    errors = []
    for penalty in penalties.tolist():
        left = (
            torch.eye(n, dtype=torch.float64) - base - (vectors * (values / (values + penalty))) @ vectors.T
        )
        squares = ((left @ kernels.G) * left).sum(1).clamp_min(0.0)
        errors.append(squares.sqrt() / left.diagonal())
    return torch.stack(errors)


def _twice(kernel: Tensor) -> Tensor:
    """The kernel of centred rows: (I − 11ᵀ/N) K (I − 11ᵀ/N)."""
    rows = kernel.mean(0, keepdim=True)
    return kernel - rows - rows.T + kernel.mean()


def _centred(kernels: Kernels) -> tuple[Tensor, Tensor]:
    k = kernels.k - kernels.K.mean(1)
    return _twice(kernels.K), k - k.mean()


def _uncentred(a: Tensor, center: bool) -> Tensor:
    return a - a.mean() + 1.0 / a.numel() if center else a


def _leading(kernel: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues that are data, and their vectors, largest first."""
    values, vectors = torch.linalg.eigh(kernel)
    values, vectors = values.flip(0), vectors.flip(1)
    solid = min(count, int(values.gt(_NULL * values[:1].clamp_min(0.0)).sum()))
    return values[:solid], vectors[:, :solid]
