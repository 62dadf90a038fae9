"""Refusals that several methods share, raised in `prepare`, before anything is read."""

from __future__ import annotations

from transfer.errors import IncompatiblePair
from transfer.interface import BasePairInfo, SitePair

_MAX_LISTED = 6  # sites named in the sentence; the rest are counted


def unequal_sites(sites: tuple[SitePair, ...]) -> tuple[SitePair, ...]:
    """The pairs whose two weights differ in shape."""
    return tuple(pair for pair in sites if pair.source_shape != pair.target_shape)


def require_sites(pair: BasePairInfo) -> None:
    """Raises IncompatiblePair when no adapted site has a counterpart."""
    if not pair.sites:
        raise IncompatiblePair("No adapted module of the source has a counterpart in the target.")


def require_equal_shapes(pair: BasePairInfo, method: str, hint: str) -> None:
    """Raises IncompatiblePair that lists the sites whose shapes differ."""
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
