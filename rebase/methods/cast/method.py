"""CAST, cartridge activation space transfer [004]: A' = A·M_in, B' = M_out·B with trained heads.

The heads are linear, so that what the paper runs as a wrapper around the adapter folds exactly into a plain
LoRA of the same rank. The training is the pipeline's work (it needs both models); what arrives here are its
maps.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_sites
from rebase.methods.activation_maps import apply_maps
from rebase.methods.base import BasePairInfo, Evidence, SiteEvidence, SitePair, SiteResult
from rebase.methods.cast.params import CastParams
from transfer.linalg import frobenius

_MIN_TRAINED_SHARE = 0.5  # of the update lies where the heads are as they began


class Cast:
    """Two products per site once the heads are there."""

    name: ClassVar[str] = "cast"

    def needs(self, params: CastParams) -> frozenset[Evidence]:
        """Trained heads alone."""
        return frozenset({Evidence.MAPS})

    def prepare(self, params: CastParams, pair: BasePairInfo) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def transfer_site(
        self, params: CastParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t).

        `reads_trained`, `writes_trained`: the share of ‖ΔW‖² in directions in which the heads were trained; 1
        for the adapter that they were trained with.
        """
        maps = evidence.trained_maps()
        result = apply_maps(delta, maps.M_in, maps.M_out)
        norm_before, norm_after = frobenius(delta), frobenius(result)
        input_share, output_share = _compute_trained_shares(delta, maps.input_basis, maps.output_basis)
        measured = {
            "reads_trained": input_share,
            "writes_trained": output_share,
            "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0,
            "update_norm": norm_after,
        }
        flags = (
            ("heads_of_another_adapter",)
            if min(input_share, output_share) < _MIN_TRAINED_SHARE and norm_before > 0.0
            else ()
        )
        return SiteResult(result, measured, flags)


def _compute_trained_shares(delta: LowRank, input_basis: Tensor, output_basis: Tensor) -> tuple[float, float]:
    """‖ΔW P‖² / ‖ΔW‖² and ‖P ΔW‖² / ‖ΔW‖² for the projectors on both bases."""
    total = frobenius(delta) ** 2
    if total == 0.0:
        return 0.0, 0.0
    input_energy = frobenius(LowRank(delta.B, (delta.A @ input_basis) @ input_basis.T)) ** 2
    output_energy = frobenius(LowRank(output_basis @ (output_basis.T @ delta.B), delta.A)) ** 2
    return min(input_energy / total, 1.0), min(output_energy / total, 1.0)
