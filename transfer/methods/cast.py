"""CAST, cartridge activation space transfer [004]: A' = A·M_in, B' = M_out·B with trained heads.

The heads are linear, so that what the paper runs as a wrapper around the adapter folds exactly into a plain
LoRA of the same rank. The training is the pipeline's work (it needs both models); what arrives here are its
maps.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from transfer.activations.maps import carried
from transfer.catalogue import CastParams
from transfer.interface import Carried, Evidence, LowRank, Pair, SiteEvidence, SitePair
from transfer.linalg import frobenius
from transfer.methods.refusals import require_sites

_ELSEWHERE = 0.5  # of the update lies where the heads are as they began


class Cast:
    """Two products per site once the heads are there."""

    name: ClassVar[str] = "cast"

    def needs(self, params: CastParams) -> frozenset[Evidence]:
        """Trained heads alone."""
        return frozenset({Evidence.HEADS})

    def prepare(self, params: CastParams, pair: Pair) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def carry(
        self, params: CastParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t).

        `reads_trained`, `writes_trained`: the share of ‖ΔW‖² in directions in which the heads were trained; 1
        for the adapter that they were trained with.
        """
        heads = evidence.heads()
        moved = carried(delta, heads.M_in, heads.M_out)
        before, after = frobenius(delta), frobenius(moved)
        reads, writes = _inside(delta, heads.reads, heads.writes)
        measured = {
            "reads_trained": reads,
            "writes_trained": writes,
            "norm_ratio": after / before if before > 0.0 else 0.0,
            "update_norm": after,
        }
        flags = ("heads_of_another_adapter",) if min(reads, writes) < _ELSEWHERE and before > 0.0 else ()
        return Carried(moved, measured, flags)


def _inside(delta: LowRank, reads: Tensor, writes: Tensor) -> tuple[float, float]:
    """‖ΔW P‖² / ‖ΔW‖² and ‖P ΔW‖² / ‖ΔW‖² for the projectors on both bases."""
    whole = frobenius(delta) ** 2
    if whole == 0.0:
        return 0.0, 0.0
    read = frobenius(LowRank(delta.B, (delta.A @ reads) @ reads.T)) ** 2
    written = frobenius(LowRank(writes @ (writes.T @ delta.B), delta.A)) ** 2
    return min(read / whole, 1.0), min(written / whole, 1.0)
