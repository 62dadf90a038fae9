"""SimpleDifference [002]: ΔW_t = γ (W_t − W_s) + ΔW_s, truncated to a rank.

With γ = +1, as in the paper, the served weight is 2 W_t − W_s + ΔW_s: it extrapolates the change from source
to target. That change has full rank, so a LoRA loses nearly all of it; the loss is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from rebase.lora.low_rank import LowRank
from rebase.methods._common import find_dense_losses, require_equal_shapes, truncate_dense
from rebase.methods.base import BasePairInfo, Evidence, Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.difference.params import DifferenceParams
from rebase.methods.findings import Finding


class Difference(Method[DifferenceParams]):
    """Reads both weights. Not linear in the update: the difference between the bases is added to it."""

    name: ClassVar[str] = "difference"
    keeps_coordinates: ClassVar[bool] = True

    def needs(self, params: DifferenceParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: DifferenceParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "difference", "Use cross_lora for bases with different shapes.")

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[DifferenceParams, ...]:
        """The defaults."""
        return (DifferenceParams(),)

    def findings(self, params: DifferenceParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """That it is a baseline, and how much of the adapter it keeps."""
        yield from find_dense_losses(self.name, params, measured)

    def transfer_site(
        self, params: DifferenceParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o, i) → an update of rank ≤ `rank`."""
        base_difference = torch.sub(evidence.weight("target"), evidence.weight("source")).mul_(params.gamma)
        base_norm = float(base_difference.norm())
        result, measured = truncate_dense(base_difference.addmm_(delta.B, delta.A), params.rank, delta)
        return SiteResult(result, measured | {"base_norm": base_norm})
