"""SimpleDifference [002]: ΔW_t = γ (W_t − W_s) + ΔW_s, cut to a rank.

With γ = +1, as in the paper, the served weight is 2 W_t − W_s + ΔW_s: it goes on in the direction in which
the base moved. That direction has full rank, so nearly all of it is lost in a LoRA; the loss is reported.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from transfer.catalogue import DifferenceParams
from transfer.interface import Carried, Evidence, LowRank, Pair, SiteEvidence, SitePair
from transfer.methods.dense import cut
from transfer.methods.refusals import require_equal_shapes


class Difference:
    """Reads both weights. Not linear in the update: the base's own move is added to it."""

    name: ClassVar[str] = "difference"

    def needs(self, params: DifferenceParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: DifferenceParams, pair: Pair) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "difference", "Across shapes use cross_lora.")

    def carry(
        self, params: DifferenceParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o, i) → an update of rank ≤ `rank`."""
        moved = torch.sub(evidence.weight("target"), evidence.weight("source")).mul_(params.gamma)
        base_norm = float(moved.norm())
        update, measured = cut(moved.addmm_(delta.B, delta.A), params.rank, delta)
        return Carried(update, measured | {"base_norm": base_norm})
