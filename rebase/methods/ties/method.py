"""TIES merging, a baseline of [000] (Yadav et al. 2023): trim, elect signs, average the entries that agree.

It merges two updates of the target: ΔW_s and W_s − W_t (which leads back to the source base). It works entry
by entry, so both are dense; the full-rank result is truncated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank
from rebase.methods._common import find_dense_losses, require_equal_shapes, truncate_dense
from rebase.methods.base import BasePairInfo, Evidence, Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.findings import Finding
from rebase.methods.ties.params import TiesParams


class Ties(Method[TiesParams]):
    """Reads both weights. Not linear in the update."""

    name: ClassVar[str] = "ties"
    keeps_coordinates: ClassVar[bool] = True

    def needs(self, params: TiesParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: TiesParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "ties", "Use cross_lora for bases with different shapes.")

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[TiesParams, ...]:
        """The defaults."""
        return (TiesParams(),)

    def findings(self, params: TiesParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """That it is a baseline, and how much of the adapter it keeps."""
        yield from find_dense_losses(self.name, params, measured)

    def transfer_site(
        self, params: TiesParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o, i) → an update of rank ≤ `rank`."""
        adapter_update = _trim(delta.B @ delta.A, params.density)
        base_update = _trim(torch.sub(evidence.weight("source"), evidence.weight("target")), params.density)
        base_norm = float(base_update.norm())
        elected_signs = torch.sign(adapter_update + base_update)
        agreement_masks = (
            (torch.sign(adapter_update) == elected_signs) & (elected_signs != 0),
            (torch.sign(base_update) == elected_signs) & (elected_signs != 0),
        )
        total = adapter_update.mul_(agreement_masks[0]).add_(base_update.mul_(agreement_masks[1]))
        voter_counts = (
            agreement_masks[0].to(total.dtype).add_(agreement_masks[1].to(total.dtype)).clamp_min_(1.0)
        )
        result, measured = truncate_dense(total.div_(voter_counts), params.rank, delta)
        return SiteResult(result, measured | {"base_norm": base_norm})


def _trim(update: Tensor, density: float) -> Tensor:
    """Zero all but the `density` share of entries largest in magnitude (ties at the threshold are kept)."""
    keep = max(1, math.ceil(density * update.numel()))
    if keep >= update.numel():
        return update
    magnitudes = update.abs()
    threshold = magnitudes.flatten().kthvalue(update.numel() - keep + 1).values
    return update.mul_(magnitudes >= threshold)
