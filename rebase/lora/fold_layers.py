"""Sums the updates of several source layers at one target site, truncated to the rank of the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rebase.lora.linalg import truncate
from rebase.lora.low_rank import LowRank, Site


def fold_layers(
    updates: Mapping[Site, Sequence[LowRank]],
) -> tuple[dict[Site, LowRank], dict[Site, float]]:
    """One update per target site, and the share of ‖ΔW‖² lost to truncation where several were summed.

    A single update is kept unchanged; several are concatenated along the rank and truncated to the largest
    rank among them.
    """
    folded: dict[Site, LowRank] = {}
    lost: dict[Site, float] = {}
    for site, parts in updates.items():
        if len(parts) == 1:
            folded[site] = parts[0]
            continue
        folded[site], lost[site] = truncate(LowRank.cat(parts), max(part.rank for part in parts))
    return folded, lost
