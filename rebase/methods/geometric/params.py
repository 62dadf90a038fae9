"""Parameters of the methods that look at paired activations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import PairedTextParams


class GeometricParams(PairedTextParams):
    """Turn the update by the orthogonal map between the bases' activations [000, geometric alignment]."""

    name: Literal["geometric"] = "geometric"
    anchors: int = Field(
        default=4096,
        ge=64,
        le=65536,
        description="Most paired positions that are matched: semantic primes first, then the corpus.",
    )
    lock_rounds: int = Field(
        default=4,
        ge=0,
        le=100,
        description=(
            "Times that the weights of anchors are raised whose images point away from their partners "
            "(anchor locks); 0 leaves the locks out."
        ),
    )
