"""Refusals that several methods share, raised in `prepare`, before anything is read."""

from __future__ import annotations

from transfer.errors import IncompatiblePair
from transfer.interface import Pair, SitePair

_LISTED = 6  # sites named in the sentence; the rest are counted


def unequal(sites: tuple[SitePair, ...]) -> tuple[SitePair, ...]:
    """The pairs whose two weights differ in shape."""
    return tuple(pair for pair in sites if pair.source_shape != pair.target_shape)


def require_sites(pair: Pair) -> None:
    """Raises IncompatiblePair when no adapted site has a counterpart."""
    if not pair.sites:
        raise IncompatiblePair("No adapted module of the source has a counterpart in the target.")


def require_equal_shapes(pair: Pair, method: str, hint: str) -> None:
    """Raises IncompatiblePair that lists the sites whose shapes differ."""
    require_sites(pair)
    misfits = unequal(pair.sites)
    if not misfits:
        return
    listed = ", ".join(
        f"{site.target} ({site.source_shape[0]}×{site.source_shape[1]} → "
        f"{site.target_shape[0]}×{site.target_shape[1]})"
        for site in misfits[:_LISTED]
    )
    more = f" and {len(misfits) - _LISTED} more" if len(misfits) > _LISTED else ""
    raise IncompatiblePair(
        f"{method} needs equal shapes at every site; they differ at {listed}{more}.",
        hint=hint,
        pointer="/method",
    )
