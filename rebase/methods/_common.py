"""Checks that several methods make in `prepare`, and the truncation of dense updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from rebase.errors import IncompatiblePair
from rebase.lora.linalg import compress, frobenius, inner
from rebase.lora.low_rank import LowRank
from rebase.methods.base import BasePairInfo, SitePair
from rebase.methods.base_params import DenseParams
from rebase.methods.findings import Finding, find_unrelated_bases

# ⟨ΔW_t, ΔW_s⟩ / ‖ΔW_s‖²: below half, the rank is spent on the bases' difference rather than the adapter.
HALF_SKILL_KEPT = 0.5
MIN_SKILL_KEPT = 0.05
_MAX_LISTED = 6  # sites named in the message; the rest are only counted


def unequal_sites(sites: tuple[SitePair, ...]) -> tuple[SitePair, ...]:
    """The pairs whose two weights differ in shape."""
    return tuple(pair for pair in sites if pair.source_shape != pair.target_shape)


def require_sites(pair: BasePairInfo) -> None:
    """Raises IncompatiblePair when no adapted site has a counterpart."""
    if not pair.sites:
        raise IncompatiblePair("No adapted module of the source has a counterpart in the target.")


def require_equal_shapes(pair: BasePairInfo, method: str, hint: str) -> None:
    """Raises IncompatiblePair listing the sites whose shapes differ."""
    require_sites(pair)
    mismatched = unequal_sites(pair.sites)
    if not mismatched:
        return
    listed = ", ".join(
        f"{site.target} ({site.source_shape[0]}×{site.source_shape[1]} → "
        f"{site.target_shape[0]}×{site.target_shape[1]})"
        for site in mismatched[:_MAX_LISTED]
    )
    more = f" and {len(mismatched) - _MAX_LISTED} more" if len(mismatched) > _MAX_LISTED else ""
    raise IncompatiblePair(
        f"{method} needs equal shapes at every site; they differ at {listed}{more}.",
        hint=hint,
        pointer="/method",
    )


def truncate_dense(update: Tensor, rank: int, delta: LowRank) -> tuple[LowRank, dict[str, float]]:
    """Truncated SVD of a dense update (o, i), and how much of the adapter's `delta` it keeps.

    `lost_energy`: the share of ‖update‖²_F that truncation loses. `skill_kept` = ⟨result, ΔW_s⟩ / ‖ΔW_s‖²: 1
    if the result still contains the adapter's entire update, whatever else it contains.
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


def find_dense_losses(name: str, params: DenseParams, measured: Mapping[str, float]) -> Iterator[Finding]:
    """For methods that truncate a dense result: they are baselines, and keep only part of the adapter."""
    yield from find_unrelated_bases(measured)
    text = (
        f"{name} mixes the bases' own difference into the update. It is a baseline and rarely the best "
        "choice."
    )
    yield Finding("baseline", text, "doubt")
    kept = measured.get("skill_kept")
    if kept is not None and kept < HALF_SKILL_KEPT:
        text = f"At rank {params.rank} the result keeps {kept:.0%} of the adapter's update."
        yield Finding("little_skill", text, "blocking" if kept < MIN_SKILL_KEPT else "doubt")
