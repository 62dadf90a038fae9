"""Train the update on text that the source and its adapter write [2405.17258, 2510.04682].

The training is the pipeline's work (it needs both models); what arrives here is its result for one site.
"""

from __future__ import annotations

from typing import ClassVar

from transfer.catalogue import DistillParams
from transfer.interface import Carried, Evidence, LowRank, Pair, SiteEvidence, SitePair
from transfer.linalg import frobenius
from transfer.methods.refusals import require_sites


class Distill:
    """Works across families, as nothing of the source but its text is used; costs minutes of training."""

    name: ClassVar[str] = "distill"

    def needs(self, params: DistillParams) -> frozenset[Evidence]:
        """The trained update; closed-form maps where training begins with them."""
        maps = {Evidence.ACTIVATIONS} if params.init == "closed_form" else set()
        return frozenset({Evidence.TRAINED} | maps)

    def prepare(self, params: DistillParams, pair: Pair) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def carry(
        self, params: DistillParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """The trained update of this target site, and its norm over the source's."""
        return whole(site, delta, evidence.trained())


def whole(site: SitePair, delta: LowRank, found: LowRank) -> Carried:
    """This site's part of an update that was found as a whole, measured against the source's own: it is the
    target layer's, and shared out among none."""
    before, after = frobenius(delta) / site.scale, frobenius(found)
    return Carried(found, {"update_norm": after, "norm_ratio": after / before if before > 0.0 else 0.0})
