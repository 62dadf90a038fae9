"""TIES merging, a baseline of [000] (Yadav et al. 2023): trim, elect a sign, mean of those that agree.

The two updates of the target are ΔW_s and W_s − W_t (what leads back to the source base). Entry by entry, so
both have to be dense; the result has full rank and is cut.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from transfer.catalogue import TiesParams
from transfer.interface import Carried, Evidence, LowRank, Pair, SiteEvidence, SitePair
from transfer.methods.dense import cut
from transfer.methods.refusals import require_equal_shapes


class Ties:
    """Reads both weights. Not linear in the update."""

    name: ClassVar[str] = "ties"

    def needs(self, params: TiesParams) -> frozenset[Evidence]:
        """Both base weights."""
        return frozenset({Evidence.WEIGHTS})

    def prepare(self, params: TiesParams, pair: Pair) -> None:
        """Raises IncompatiblePair, listing the sites, when shapes differ."""
        require_equal_shapes(pair, "ties", "Across shapes use cross_lora.")

    def carry(
        self, params: TiesParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o, i) → an update of rank ≤ `rank`."""
        skill = _trim(delta.B @ delta.A, params.density)
        back = _trim(torch.sub(evidence.weight("source"), evidence.weight("target")), params.density)
        base_norm = float(back.norm())
        elected = torch.sign(skill + back)
        agrees = (
            (torch.sign(skill) == elected) & (elected != 0),
            (torch.sign(back) == elected) & (elected != 0),
        )
        total = skill.mul_(agrees[0]).add_(back.mul_(agrees[1]))
        voters = agrees[0].to(total.dtype).add_(agrees[1].to(total.dtype)).clamp_min_(1.0)
        update, measured = cut(total.div_(voters), params.rank, delta)
        return Carried(update, measured | {"base_norm": base_norm})


def _trim(update: Tensor, density: float) -> Tensor:
    """The `density` share of entries that are largest in magnitude (equals at the threshold stay)."""
    keep = max(1, math.ceil(density * update.numel()))
    if keep >= update.numel():
        return update
    size = update.abs()
    threshold = size.flatten().kthvalue(update.numel() - keep + 1).values
    return update.mul_(size >= threshold)
