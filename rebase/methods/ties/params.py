"""Parameters of `ties`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import DenseParams


class TiesParams(DenseParams):
    """TIES-merge the update with the difference back to the source base: a baseline [000, TIES]."""

    name: Literal["ties"] = "ties"
    density: float = Field(
        default=0.2, gt=0.0, le=1.0, description="Share of entries to keep on each side, by magnitude."
    )
