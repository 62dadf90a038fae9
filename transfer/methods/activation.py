"""Closed-form maps from paired activations (ours): A' = A·M_in, B' = M_out·B.

M_in and M_out are ridge regressions between what the two bases' sites read and write on the same text
(`transfer.activations.maps`). Widths, depths, head counts and tokenizers may all differ. The rank stays.
"""

from __future__ import annotations

import math
from typing import ClassVar

from transfer.activations.maps import carried, read_r2, write_r2
from transfer.activations.site import site_map
from transfer.catalogue import ActivationParams
from transfer.interface import Carried, Evidence, LowRank, Pair, SiteEvidence, SitePair
from transfer.linalg import frobenius
from transfer.methods.refusals import require_sites


class Activation:
    """Two products per site once the maps are there."""

    name: ClassVar[str] = "activation"

    def needs(self, params: ActivationParams) -> frozenset[Evidence]:
        """Paired activations alone."""
        return frozenset({Evidence.ACTIVATIONS})

    def prepare(self, params: ActivationParams, pair: Pair) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def carry(
        self, params: ActivationParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t). Measures the read and write R² and the ratio of norms."""
        M_in, reads = site_map(evidence, "in", params.ridge)
        M_out, writes = site_map(evidence, "out", params.ridge)
        moved = carried(delta, M_in, M_out)
        before, after = frobenius(delta), frobenius(moved)
        if params.norm == "preserve" and after > 0.0:
            moved = moved.scaled(before / after)
        measured = {
            "read_r2": read_r2(delta.A, M_in, reads),
            "write_r2": write_r2(delta.B, M_out, writes),
            "norm_ratio": after / before if before > 0.0 else 0.0,
            "update_norm": frobenius(moved),
        }
        return Carried(moved, {name: value for name, value in measured.items() if math.isfinite(value)})
