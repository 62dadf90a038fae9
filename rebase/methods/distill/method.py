"""Train the update on text that the source and its adapter write [2405.17258, 2510.04682].

The training is the pipeline's work (it needs both models); what arrives here is its result for one site.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rebase.lora.low_rank import LowRank
from rebase.methods._common import require_sites
from rebase.methods.base import (
    TRAINED_ON_TEXT,
    BasePairInfo,
    CorpusNeeds,
    Evidence,
    Method,
    SiteEvidence,
    SitePair,
    SiteResult,
    T,
    Trainer,
    trained_site_result,
)
from rebase.methods.distill.params import DistillParams
from rebase.methods.findings import Finding


class Distill(Method[DistillParams]):
    """Works across families, as nothing of the source but its text is used; costs minutes of training."""

    name: ClassVar[str] = "distill"
    effort: ClassVar[str] = TRAINED_ON_TEXT

    def needs(self, params: DistillParams) -> frozenset[Evidence]:
        """The trained update; closed-form maps where training begins with them."""
        maps = {Evidence.ACTIVATIONS} if params.init == "closed_form" else set()
        return frozenset({Evidence.TRAINED} | maps)

    def prepare(self, params: DistillParams, pair: BasePairInfo) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[DistillParams, ...]:
        """As it is by default."""
        return (DistillParams(),) if allow_training else ()

    def corpus_needs(self, params: DistillParams) -> CorpusNeeds:
        """Sums alone."""
        return CorpusNeeds(positions=params.positions, writes=params.writes)

    def findings(self, params: DistillParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """What is trained."""
        text = (
            f"distill trains: {params.tokens} tokens that the source writes, at most {params.steps} steps. "
            "Whether it worked is measured on held-out text of the same kind."
        )
        yield Finding("trains", text, "info")

    def train(self, params: DistillParams, trainer: Trainer[T]) -> T | None:
        """The update."""
        return trainer.distill(params, rank=params.rank, init=params.init)

    def transfer_site(
        self, params: DistillParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """The trained update of this target site, and its norm over the source's."""
        return trained_site_result(site, delta, evidence.trained_update())
