"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import DenseParams


class DifferenceParams(DenseParams):
    """Add the base's own move to the update, cut to a rank [002, SimpleDifference]."""

    name: Literal["difference"] = "difference"
    gamma: float = Field(
        default=1.0, ge=-10.0, le=10.0, description="Factor of W_t − W_s; the paper takes +1."
    )
