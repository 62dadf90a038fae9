"""Several source layers' updates at one target site: their sum, cut back exactly to one adapter's rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from rebase.lora.low_rank import LowRank, Site
from rebase.report.schema import SiteRow
from transfer.linalg import truncate


def folded(
    parts: Mapping[Site, Sequence[LowRank]], rows: Sequence[SiteRow]
) -> tuple[dict[Site, LowRank], list[SiteRow]]:
    """One update and one row per target site. Sites with one part are left as they are; of several, ranks are
    put side by side and truncated to the largest part's, and `fold_lost` tells the share of ‖ΔW‖² lost."""
    deltas: dict[Site, LowRank] = {}
    lost: dict[str, float] = {}
    for site, some in parts.items():
        if len(some) == 1:
            deltas[site] = some[0]
            continue
        whole = LowRank(torch.cat([part.B for part in some], 1), torch.cat([part.A for part in some], 0))
        deltas[site], lost[str(site)] = truncate(whole, max(part.rank for part in some))
    grouped: dict[str, list[SiteRow]] = {}
    for row in rows:
        grouped.setdefault(row.target, []).append(row)
    return deltas, [_merged(some, lost.get(target)) for target, some in grouped.items()]


def _merged(rows: Sequence[SiteRow], lost: float | None) -> SiteRow:
    if lost is None:
        return rows[0]
    names = sorted({name for row in rows for name in row.measurements})
    means = {
        name: math.fsum(values) / len(values)
        for name in names
        if (values := [row.measurements[name] for row in rows if name in row.measurements])
    }
    return SiteRow(
        source="+".join(row.source for row in rows),
        target=rows[0].target,
        measurements={**means, "folded": float(len(rows)), "fold_lost": lost},
        flags=sorted({flag for row in rows for flag in row.flags}),
    )
