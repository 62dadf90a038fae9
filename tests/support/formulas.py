"""What each weight-space method should give: NumPy, float64, written from its formula alone.

A problem is one site: W_s and W_t (o, i), the update D (o_s, i_s), and for `anchored` what shared tokens make
the site read and write on either side, as rows. The answer is the dense update of the target (o_t, i_t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class SiteProblem:
    """One site. `reads`, `writes`: (source rows, target rows), float64."""

    W_s: Matrix
    W_t: Matrix
    D: Matrix
    r: int  # the adapter's rank
    reads: tuple[Matrix, Matrix] | None = None
    writes: tuple[Matrix, Matrix] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def best(matrix: Matrix, rank: int) -> Matrix:
    """The best approximation of that rank."""
    U, S, Vh = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((U[:, :rank] * S[:rank]) @ Vh[:rank])


def directions(W: Matrix, k: int) -> tuple[Matrix, Matrix]:
    """U (o, k) and V (i, k); the largest entry of every column of U is positive."""
    U, _, Vh = np.linalg.svd(W, full_matrices=False)
    U, V = U[:, :k], Vh[:k].T
    signs = np.sign(U[np.abs(U).argmax(0), np.arange(U.shape[1])])
    return U * signs, V * signs


def copy(w: SiteProblem) -> Matrix:
    """ΔW_s, cropped or filled with zeros where shapes differ."""
    out = np.zeros(w.W_t.shape)
    o, i = np.minimum(w.W_s.shape, w.W_t.shape)
    out[:o, :i] = w.D[:o, :i]
    return out


def difference(w: SiteProblem) -> Matrix:
    """γ (W_t − W_s) + ΔW_s."""
    return best(w.options.get("gamma", 1.0) * (w.W_t - w.W_s) + w.D, w.options["rank"])


def weight_average(w: SiteProblem) -> Matrix:
    """½ (W_s + ΔW_s + W_t) − W_t."""
    return best((w.W_s + w.D + w.W_t) / 2 - w.W_t, w.options["rank"])


def ties(w: SiteProblem) -> Matrix:
    """Trim both, elect the sign of the sum, mean of those that agree with it."""
    trimmed = []
    for T in (w.D, w.W_s - w.W_t):
        kept = np.argsort(-np.abs(T), axis=None)[: int(np.ceil(w.options["density"] * T.size))]
        mask = np.zeros(T.size, dtype=bool)
        mask[kept] = True
        trimmed.append(np.where(mask.reshape(T.shape), T, 0.0))
    votes = np.stack(trimmed)
    agree = (np.sign(votes) == np.sign(votes.sum(0))) & (votes != 0.0)
    return best((votes * agree).sum(0) / np.maximum(agree.sum(0), 1), w.options["rank"])


def linear(w: SiteProblem) -> Matrix:
    """P ΔW with P = W_t W_sᵀ (W_s W_sᵀ + λI)⁻¹, or the same on the transposed matrices."""
    turned = w.options.get("side") == "input"
    W_s, W_t, D = (M.T if turned else M for M in (w.W_s, w.W_t, w.D))
    G = W_s @ W_s.T
    penalty = w.options.get("ridge", 1e-3) * np.trace(G) / len(G)
    moved = W_t @ W_s.T @ np.linalg.inv(G + penalty * np.eye(len(G))) @ D
    return moved.T if turned else moved


def prolora(w: SiteProblem) -> Matrix:
    """P ΔW P inside the leading directions, (I − P) ΔW (I − P) outside, each side's own P."""
    projectors = []
    for W in (w.W_s, w.W_t):
        energy = np.cumsum(np.linalg.svd(W, compute_uv=False) ** 2) / np.sum(W**2)
        k = int(np.argmax(energy >= w.options.get("energy", 0.95))) + 1
        U, V = directions(W, k)
        projectors.append((U @ U.T, V @ V.T))
    (Us, Vs), (Ut, Vt) = projectors
    I_o, I_i = (np.eye(n) for n in w.D.shape)
    inside = Us @ w.D @ Vs
    outside = w.D - inside if w.options.get("perp") == "residual" else (I_o - Us) @ w.D @ (I_i - Vs)
    return best(Ut @ inside @ Vt + (I_o - Ut) @ outside @ (I_i - Vt), w.r)


def cross_lora(w: SiteProblem) -> Matrix:
    """M_out ΔW M_inᵀ with M_out = U_t Q_outᵀ U_sᵀ and M_in = V_t Q_inᵀ V_sᵀ, or only projected."""
    k, alignment = w.options["rank"], w.options.get("alignment", "anchored")
    (U_s, V_s), (U_t, V_t) = directions(w.W_s, k), directions(w.W_t, k)
    if alignment == "projection":
        M_out, M_in = U_t @ U_t.T, V_t @ V_t.T
    else:
        Q_out = Q_in = np.eye(U_s.shape[1], U_t.shape[1])
        if alignment == "anchored":
            assert w.reads is not None and w.writes is not None
            Q_in = _turn(w.reads[0] @ V_s, w.reads[1] @ V_t)
            Q_out = _turn(w.writes[0] @ U_s, w.writes[1] @ U_t)
        M_out, M_in = U_t @ Q_out.T @ U_s.T, V_t @ Q_in.T @ V_s.T
    moved = M_out @ w.D @ M_in.T
    if w.options.get("orthogonalize"):
        moved = _straightened(M_out, M_in, w.D, w.r) * np.linalg.norm(moved)
    if w.options.get("norm") == "preserve":
        moved = moved * np.linalg.norm(w.D) / np.linalg.norm(moved)
    return np.asarray(moved)


def _turn(X: Matrix, Y: Matrix) -> Matrix:
    """Orthogonal Procrustes on the rows that are not held out: every eighth is."""
    fit = np.arange(len(X)) % 8 != 7
    P, _, Qh = np.linalg.svd(X[fit].T @ Y[fit], full_matrices=False)
    return np.asarray(P @ Qh)


def _straightened(M_out: Matrix, M_in: Matrix, D: Matrix, r: int) -> Matrix:
    """Σ σ_j û_j v̂_jᵀ of unit norm; X Σ² (Σ² XᵀX Σ²)^(−1/2) by eigenvalues, on either side."""
    U, S, Vh = np.linalg.svd(D)
    U, S, V = U[:, :r], S[:r], Vh[:r].T
    sides = []
    for M, ours in ((M_out, U), (M_in, V)):
        weighted = M @ ours * S**2
        values, vectors = np.linalg.eigh(weighted.T @ weighted)
        sides.append(weighted @ vectors @ np.diag(values**-0.5) @ vectors.T)
    straight = sides[0] @ np.diag(S) @ sides[1].T
    return np.asarray(straight / np.linalg.norm(straight))


FORMULAS: dict[str, Callable[[SiteProblem], Matrix]] = {
    "copy": copy,
    "difference": difference,
    "weight_average": weight_average,
    "ties": ties,
    "linear": linear,
    "prolora": prolora,
    "cross_lora": cross_lora,
}
