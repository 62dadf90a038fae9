"""Train the update on text that the source and its adapter write [2405.17258, 2510.04682].

The training is the pipeline's work (it needs both models); what arrives here is its result for one site.
"""

from __future__ import annotations

from typing import ClassVar

from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_sites
from rebase.methods.base import (
    BasePairInfo,
    Evidence,
    SiteEvidence,
    SitePair,
    SiteResult,
    trained_site_result,
)
from rebase.methods.distill.params import DistillParams


class Distill:
    """Works across families, as nothing of the source but its text is used; costs minutes of training."""

    name: ClassVar[str] = "distill"

    def needs(self, params: DistillParams) -> frozenset[Evidence]:
        """The trained update; closed-form maps where training begins with them."""
        maps = {Evidence.ACTIVATIONS} if params.init == "closed_form" else set()
        return frozenset({Evidence.TRAINED} | maps)

    def prepare(self, params: DistillParams, pair: BasePairInfo) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def transfer_site(
        self, params: DistillParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """The trained update of this target site, and its norm over the source's."""
        return trained_site_result(site, delta, evidence.trained_update())
