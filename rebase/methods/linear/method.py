"""SimpleLinear [002]: fits a linear map from the source to the target weight and applies it to the update.

`side="output"`: P = argmin ‖P W_s − W_t‖²_F + λ‖P‖²_F = W_t W_sᵀ (W_s W_sᵀ + λI)⁻¹ and B' = P B.
`side="input"`, the paper's orientation: P = W_tᵀ W_s (W_sᵀ W_s + λI)⁻¹ and A' = A Pᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_equal_shapes
from rebase.methods.base import BasePairInfo, Evidence, Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.findings import Finding, find_unrelated_bases
from rebase.methods.linear.params import LinearParams


class Linear(Method[LinearParams]):
    """Rank-preserving: P is never formed, only applied to the r columns of B or the r rows of A."""

    name: ClassVar[str] = "linear"
    keeps_coordinates: ClassVar[bool] = True

    def needs(self, params: LinearParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: LinearParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "linear", "Use cross_lora for bases with different shapes.")

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[LinearParams, ...]:
        """The defaults."""
        return (LinearParams(),)

    def findings(self, params: LinearParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """Coordinates must have the same meaning in both bases."""
        yield from find_unrelated_bases(measured)

    def transfer_site(
        self, params: LinearParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o, i) → an update of the same rank."""
        source, target = evidence.weight("source"), evidence.weight("target")
        if params.side == "output":
            result = LowRank(_apply_ridge_map(source, target, delta.B, params.ridge), delta.A)
        else:
            result = LowRank(
                delta.B, _apply_ridge_map(source.T, target.T, delta.A.T, params.ridge).T.contiguous()
            )
        norm_before, norm_after = frobenius(delta), frobenius(result)
        ratio = {"norm_ratio": norm_after / norm_before} if norm_before > 0.0 else {}
        return SiteResult(result, {"update_norm": norm_after, **ratio})


def _apply_ridge_map(source: Tensor, target: Tensor, columns: Tensor, ridge: float) -> Tensor:
    """P X for X (o, r), P = W_t W_sᵀ (W_s W_sᵀ + λI)⁻¹, λ = ridge · mean eigenvalue of W_s W_sᵀ.

    W_sᵀ(W_s W_sᵀ + λI)⁻¹ = (W_sᵀ W_s + λI)⁻¹ W_sᵀ, so the smaller Gram matrix is used. Float64, because the
    Gram matrix squares the condition number. A zero base weight maps everything to zero.
    """
    S, X = source.double(), columns.double()
    o, i = S.shape
    penalty = ridge * float(S.square().sum()) / o
    if penalty == 0.0:
        return torch.zeros_like(columns)
    solved = S.T @ _solve_ridge(S @ S.T, penalty, X) if o <= i else _solve_ridge(S.T @ S, penalty, S.T @ X)
    return (target.double() @ solved).to(columns.dtype)


def _solve_ridge(gram: Tensor, penalty: float, right: Tensor) -> Tensor:
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
