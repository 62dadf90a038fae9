"""Weight averaging, a baseline of [000]: ΔW_t = ½ (W_s + ΔW_s + W_t) − W_t, truncated to a rank.

The mean of the fine-tuned source and the target, as an update of the target. Only a baseline: between
identical bases it transfers half of the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from rebase.lora.low_rank import LowRank
from rebase.methods._common import find_dense_losses, require_equal_shapes, truncate_dense
from rebase.methods.base import BasePairInfo, Evidence, Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.findings import Finding
from rebase.methods.weight_average.params import WeightAverageParams


class WeightAverage(Method[WeightAverageParams]):
    """Reads both weights: ½ (ΔW_s + W_s − W_t). Not linear in the update."""

    name: ClassVar[str] = "weight_average"
    keeps_coordinates: ClassVar[bool] = True

    def needs(self, params: WeightAverageParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: WeightAverageParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "weight_average", "Use cross_lora for bases with different shapes.")

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[WeightAverageParams, ...]:
        """The defaults."""
        return (WeightAverageParams(),)

    def findings(self, params: WeightAverageParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """That it is a baseline, and how much of the adapter it keeps."""
        yield from find_dense_losses(self.name, params, measured)

    def transfer_site(
        self, params: WeightAverageParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o, i) → an update of rank ≤ `rank`."""
        half_difference = torch.sub(evidence.weight("source"), evidence.weight("target")).mul_(0.5)
        base_norm = float(half_difference.norm())
        result, measured = truncate_dense(
            half_difference.addmm_(delta.B, delta.A, alpha=0.5), params.rank, delta
        )
        return SiteResult(result, measured | {"base_norm": base_norm})
