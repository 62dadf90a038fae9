"""Parameters of `geometric`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import PairedTextParams


class GeometricParams(PairedTextParams):
    """Rotate the update by the orthogonal map between the bases' activations [000, geometric alignment]."""

    name: Literal["geometric"] = "geometric"
    anchors: int = Field(
        default=4096,
        ge=64,
        le=65536,
        description="Maximum paired positions to align on: semantic primes first, then the corpus.",
    )
    lock_rounds: int = Field(
        default=4,
        ge=0,
        le=100,
        description=(
            "Rounds of raising the weights of positions that map to the wrong side of their partner (anchor "
            "locks); 0 disables the locks."
        ),
    )
