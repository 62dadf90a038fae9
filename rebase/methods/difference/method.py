"""SimpleDifference [002]: ΔW_t = γ (W_t − W_s) + ΔW_s, cut to a rank.

With γ = +1, as in the paper, the served weight is 2 W_t − W_s + ΔW_s: it goes on in the direction in which
the base moved. That direction has full rank, so nearly all of it is lost in a LoRA; the loss is reported.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_equal_shapes, truncate_dense
from rebase.methods.base import BasePairInfo, Evidence, SiteEvidence, SitePair, SiteResult
from rebase.methods.difference.params import DifferenceParams


class Difference:
    """Reads both weights. Not linear in the update: the base's own move is added to it."""

    name: ClassVar[str] = "difference"

    def needs(self, params: DifferenceParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: DifferenceParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "difference", "Across shapes use cross_lora.")

    def transfer_site(
        self, params: DifferenceParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o, i) → an update of rank ≤ `rank`."""
        base_difference = torch.sub(evidence.weight("target"), evidence.weight("source")).mul_(params.gamma)
        base_norm = float(base_difference.norm())
        result, measured = truncate_dense(base_difference.addmm_(delta.B, delta.A), params.rank, delta)
        return SiteResult(result, measured | {"base_norm": base_norm})
