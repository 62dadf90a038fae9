"""What a pre-check finds: a sentence with a weight. The findings that several methods share stand here.

Thresholds are first settings, from the papers' findings and from constructed cases; measuring methods against
natively trained adapters is what calibrates them. A threshold of one method stands in that method's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Weight = Literal["info", "doubt", "blocking"]

# Cosine 0.5 between the weights. Unrelated trainings of one shape lie at √2 ± 0.05.
UNRELATED_DISTANCE = 1.0
# Below half, more of the update is lost than kept; below 5 % the result is nearly a no-op.
HALF_ENERGY_KEPT = 0.5
MIN_ENERGY_KEPT = 0.05
# The least number of shared tokens that the parameters allow.
MIN_SHARED_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `info` never moves the verdict, a `doubt` makes it uncertain, `blocking` incompatible."""

    code: str
    message: str
    weight: Weight


def find_unrelated_bases(measured: Mapping[str, float]) -> Iterator[Finding]:
    """For methods that take coordinate j of one base for coordinate j of the other, on one side at least."""
    if measured["shapes_equal"] == 1.0 and measured.get("relative_distance", 0.0) > UNRELATED_DISTANCE:
        text = "The bases have equal shapes but unrelated weights, so the same update means something else."
        yield Finding("unrelated_bases", text, "blocking")


def weigh_energy(kept: float) -> Weight | None:
    """How much a share of the update's energy in [0, 1] counts against a method; None: not at all."""
    if kept >= HALF_ENERGY_KEPT:
        return None
    return "blocking" if kept < MIN_ENERGY_KEPT else "doubt"
