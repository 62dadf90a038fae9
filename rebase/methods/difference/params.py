"""Parameters of `difference`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import DenseParams


class DifferenceParams(DenseParams):
    """Add the difference between the bases to the update and truncate to a rank [002, SimpleDifference]."""

    name: Literal["difference"] = "difference"
    gamma: float = Field(
        default=1.0, ge=-10.0, le=10.0, description="Factor for W_t − W_s; the paper uses +1."
    )
