"""What the methods that mix whole base weights share: their update is dense, so it is cut back to a rank."""

from __future__ import annotations

from torch import Tensor

from transfer.interface import LowRank
from transfer.linalg import compress, frobenius, inner


def cut(update: Tensor, rank: int, delta: LowRank) -> tuple[LowRank, dict[str, float]]:
    """Best approximation of a dense update (o, i) at this rank, and what became of the adapter's `delta`.

    `lost_energy`: the share of ‖update‖²_F outside the rank. `skill_kept` = ⟨result, ΔW_s⟩ / ‖ΔW_s‖²: 1 when
    the result still holds all of the adapter's own update, whatever else it holds.
    """
    moved, lost = compress(update, rank)
    after, before = frobenius(moved), frobenius(delta)
    measured = {"update_norm": after, "lost_energy": lost}
    if before > 0.0:
        measured |= {"norm_ratio": after / before, "skill_kept": inner(moved, delta) / before**2}
    return moved, measured
