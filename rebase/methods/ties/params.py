"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import DenseParams


class TiesParams(DenseParams):
    """Trim, elect signs and average the update with the way back to the source: a baseline [000, TIES]."""

    name: Literal["ties"] = "ties"
    density: float = Field(
        default=0.2, gt=0.0, le=1.0, description="Share of entries that each side keeps, by magnitude."
    )
