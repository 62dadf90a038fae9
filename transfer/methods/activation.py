"""Closed-form maps from paired activations (ours): A' = A·M_in, B' = M_out·B.

M_in and M_out are ridge regressions between what the two bases' sites read and write on the same text
(`transfer.activations.maps`). Widths, depths, head counts and tokenizers may all differ. The rank stays.
"""

from __future__ import annotations

from typing import ClassVar

from transfer.activations.maps import carried
from transfer.activations.site import known, site_map
from transfer.catalogue import ActivationParams
from transfer.interface import Carried, Evidence, LowRank, Pair, SiteEvidence, SitePair
from transfer.linalg import frobenius
from transfer.methods.distill import whole
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

    def prepare(self, params: ActivationParams, pair: Pair) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def carry(
        self, params: ActivationParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t). Measures the read and write R² and the ratio of norms."""
        if params.solve != "maps":
            return whole(site, delta, evidence.trained())
        M_in, reads = site_map(evidence, "in", params.ridge)
        M_out, writes = site_map(evidence, "out", params.ridge)
        moved = carried(delta, M_in, M_out)
        before, after = frobenius(delta), frobenius(moved)
        if params.norm == "preserve" and after > 0.0:
            moved = moved.scaled(before / after)
        measured = {
            **known(delta, M_in, M_out, reads, writes),
            "norm_ratio": after / before if before > 0.0 else 0.0,
            "update_norm": frobenius(moved),
        }
        return Carried(moved, measured)
