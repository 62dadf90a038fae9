"""Closed-form maps from paired activations (ours): A' = A·M_in, B' = M_out·B.

M_in and M_out are ridge regressions between what the two bases' sites read and write on the same text
(`transfer.activations.maps`). Widths, depths, head counts and tokenizers may all differ. The rank stays.
"""

from __future__ import annotations

from typing import ClassVar

from transfer.activations.maps import apply_maps
from transfer.activations.site import get_site_map, map_metrics
from transfer.catalogue import ActivationParams
from transfer.interface import BasePairInfo, Evidence, LowRank, SiteEvidence, SitePair, SiteResult
from transfer.linalg import frobenius
from transfer.methods.distill import trained_site_result
from transfer.methods.refusals import require_sites


class Activation:
    """Two products per site once the maps are there."""

    name: ClassVar[str] = "activation"

    def needs(self, params: ActivationParams) -> frozenset[Evidence]:
        """Paired activations, unless the step is taken alone; for the step, an update found as a whole, since
        the loss couples all sites."""
        maps = {Evidence.ACTIVATIONS} if params.solve != "step" else set()
        step = {Evidence.TRAINED} if params.solve != "maps" else set()
        return frozenset(maps | step)

    def prepare(self, params: ActivationParams, pair: BasePairInfo) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def transfer_site(
        self, params: ActivationParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t). Measures the read and write R² and the ratio of norms."""
        if params.solve != "maps":
            return trained_site_result(site, delta, evidence.trained_update())
        M_in, input_rows = get_site_map(evidence, "in", params.ridge)
        M_out, output_rows = get_site_map(evidence, "out", params.ridge)
        result = apply_maps(delta, M_in, M_out)
        norm_before, norm_after = frobenius(delta), frobenius(result)
        if params.norm == "preserve" and norm_after > 0.0:
            result = result.scaled(norm_before / norm_after)
        measured = {
            **map_metrics(delta, M_in, M_out, input_rows, output_rows),
            "norm_ratio": norm_after / norm_before if norm_before > 0.0 else 0.0,
            "update_norm": frobenius(result),
        }
        return SiteResult(result, measured)
