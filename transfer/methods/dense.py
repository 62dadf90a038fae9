"""What the methods that mix whole base weights share: their update is dense, so it is cut back to a rank."""

from __future__ import annotations

from torch import Tensor

from transfer.interface import LowRank
from transfer.linalg import compress, frobenius, inner


def truncate_dense(update: Tensor, rank: int, delta: LowRank) -> tuple[LowRank, dict[str, float]]:
    """Best approximation of a dense update (o, i) at this rank, and what became of the adapter's `delta`.

    `lost_energy`: the share of ‖update‖²_F outside the rank. `skill_kept` = ⟨result, ΔW_s⟩ / ‖ΔW_s‖²: 1 when
    the result still holds all of the adapter's own update, whatever else it holds.
    """
    result, lost_energy = compress(update, rank)
    norm_after, norm_before = frobenius(result), frobenius(delta)
    measured = {"update_norm": norm_after, "lost_energy": lost_energy}
    if norm_before > 0.0:
        measured |= {
            "norm_ratio": norm_after / norm_before,
            "skill_kept": inner(result, delta) / norm_before**2,
        }
    return result, measured
