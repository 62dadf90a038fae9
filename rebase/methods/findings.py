"""Pre-check findings, each a message with a weight, and the findings that several methods share.

The thresholds are initial settings, based on the papers' results and on constructed cases; comparing methods
with natively trained adapters calibrates them. Thresholds of a single method are in that method's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Weight = Literal["info", "doubt", "blocking"]

# Cosine 0.5 between the weights. Independently trained weights of one shape are at √2 ± 0.05.
UNRELATED_DISTANCE = 1.0
# Below half, more of the update is lost than kept; below 5 % the result is nearly a no-op.
HALF_ENERGY_KEPT = 0.5
MIN_ENERGY_KEPT = 0.05
# The smallest number of shared tokens that the parameters allow.
MIN_SHARED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `info` leaves the verdict alone, `doubt` makes it uncertain, `blocking` incompatible."""

    code: str
    message: str
    weight: Weight


def find_unrelated_bases(measured: Mapping[str, float]) -> Iterator[Finding]:
    """For methods that identify coordinate j of one base with coordinate j of the other on at least one side
    of the weight."""
    if measured["shapes_equal"] == 1.0 and measured.get("relative_distance", 0.0) > UNRELATED_DISTANCE:
        text = "The bases have equal shapes but unrelated weights, so the same update has a different effect."
        yield Finding("unrelated_bases", text, "blocking")


def weigh_energy(kept: float) -> Weight | None:
    """The weight of keeping only this share, in [0, 1], of the update's energy; None if it is no problem."""
    if kept >= HALF_ENERGY_KEPT:
        return None
    return "blocking" if kept < MIN_ENERGY_KEPT else "doubt"
