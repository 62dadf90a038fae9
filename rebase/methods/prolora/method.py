"""ProLoRA [002, App. C]: the parts inside and outside the base's leading directions, transferred separately.

With P_U = U_k U_kᵀ and P_V = V_k V_kᵀ of each base weight, k directions holding the share `energy` of ‖W‖²:

    parallel    P_{U_t} (P_{U_s} ΔW P_{V_s}) P_{V_t}
    orthogonal  (I − P_{U_t}) Z (I − P_{V_t})

with Z = (I − P_{U_s}) ΔW (I − P_{V_s}) for `perp="complement"`, or Z = ΔW − P_{U_s} ΔW P_{V_s} for
`perp="residual"`, which also keeps the two mixed parts. The printed formula allows both; its V_∥ᵀV_∥ can only
mean V_∥V_∥ᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rebase.lora.linalg import frobenius, truncate
from rebase.lora.low_rank import Factors, LowRank
from rebase.methods._common import require_equal_shapes
from rebase.methods.base import BasePairInfo, Evidence, Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.findings import Finding, find_unrelated_bases, weigh_energy
from rebase.methods.prolora.params import ProLoraParams


class ProLora(Method[ProLoraParams]):
    """Projects B and A only, computing I − P as X − U(UᵀX). Truncates back to the adapter's rank."""

    name: ClassVar[str] = "prolora"
    keeps_coordinates: ClassVar[bool] = True

    def needs(self, params: ProLoraParams) -> frozenset[Evidence]:
        """Truncated SVDs of both bases."""
        return frozenset({Evidence.FACTORS})

    def prepare(self, params: ProLoraParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "prolora", "Use cross_lora for bases with different shapes.")

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[ProLoraParams, ...]:
        """The defaults."""
        return (ProLoraParams(),)

    def findings(self, params: ProLoraParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """Unrelated bases and lost energy. On the bundled pair: 42 % kept, seven times the loss of `copy`."""
        yield from find_unrelated_bases(measured)
        if "energy_parallel" not in measured:
            return
        kept = measured["energy_parallel"] + measured["energy_orthogonal"]
        if (weight := weigh_energy(kept)) is not None:
            text = f"The parts inside and outside the leading directions hold {kept:.0%} of the update."
            yield Finding("little_energy", text, weight)

    def transfer_site(
        self, params: ProLoraParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o, i) → an update of the same rank or, with `truncate=false`, of the parts' combined rank."""
        source, short_s = _select_leading(evidence.factors("source", params.rank), params.energy)
        target, short_t = _select_leading(evidence.factors("target", params.rank), params.energy)
        inside = LowRank(_project(source.U, delta.B), _project(source.V, delta.A.T).T)
        parallel = LowRank(_project(target.U, inside.B), _project(target.V, inside.A.T).T)
        if params.perp == "complement":
            outside = LowRank(delta.B - inside.B, delta.A - inside.A)
        else:
            outside = LowRank(torch.cat([delta.B, -inside.B], 1), torch.cat([delta.A, inside.A], 0))
        orthogonal = LowRank(_reject(target.U, outside.B), _reject(target.V, outside.A.T).T)
        result = LowRank(torch.cat([parallel.B, orthogonal.B], 1), torch.cat([parallel.A, orthogonal.A], 0))
        truncation_metrics = {}
        if params.truncate:
            result, lost_energy = truncate(result, delta.rank)
            truncation_metrics = {"lost_energy": lost_energy}
        measured = {
            "directions_source": float(source.S.numel()),
            "directions_target": float(target.S.numel()),
            "update_norm": frobenius(result),
            **truncation_metrics,
        }
        if (norm_before := frobenius(delta)) > 0.0:
            measured |= {
                "norm_ratio": measured["update_norm"] / norm_before,
                "energy_parallel": (frobenius(parallel) / norm_before) ** 2,
                "energy_orthogonal": (frobenius(orthogonal) / norm_before) ** 2,
            }
        return SiteResult(result, measured, ("energy_short",) if short_s or short_t else ())


def _select_leading(factors: Factors, energy: float) -> tuple[Factors, bool]:
    """The fewest directions that hold `energy` of ‖W‖²_F; True if all computed directions hold less."""
    squares = factors.S.double().square()
    if factors.energy <= 0.0:
        return Factors(factors.U[:, :0], factors.S[:0], factors.V[:, :0], 0.0), False
    cumulative_energy = squares.cumsum(0) / (squares.sum() / factors.energy)
    k = min(int((cumulative_energy < energy).sum()) + 1, factors.S.numel())
    is_full_rank = factors.S.numel() == min(factors.U.shape[0], factors.V.shape[0])
    is_short = not is_full_rank and float(cumulative_energy[-1]) < energy
    return Factors(
        factors.U[:, :k], factors.S[:k], factors.V[:, :k], float(cumulative_energy[k - 1])
    ), is_short


def _project(basis: Tensor, columns: Tensor) -> Tensor:
    """U Uᵀ X."""
    return basis @ (basis.T @ columns)


def _reject(basis: Tensor, columns: Tensor) -> Tensor:
    """X − U Uᵀ X."""
    return columns - _project(basis, columns)
