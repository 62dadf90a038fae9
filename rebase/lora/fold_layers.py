"""Several source layers' updates at one target site: their sum, truncated exactly to one adapter's rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rebase.lora.linalg import truncate
from rebase.lora.low_rank import LowRank, Site


def fold_layers(
    updates: Mapping[Site, Sequence[LowRank]],
) -> tuple[dict[Site, LowRank], dict[Site, float]]:
    """One update per target site, and at sites with several the share of ‖ΔW‖² that the truncation lost.

    A site with one update keeps it as it is; of several, ranks are put side by side and truncated to the
    largest one's.
    """
    folded: dict[Site, LowRank] = {}
    lost: dict[Site, float] = {}
    for site, parts in updates.items():
        if len(parts) == 1:
            folded[site] = parts[0]
            continue
        folded[site], lost[site] = truncate(LowRank.cat(parts), max(part.rank for part in parts))
    return folded, lost
