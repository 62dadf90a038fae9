"""Parameters of `copy`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class CopyParams(MethodParams):
    """Copy the update unchanged: the baseline to beat between close relatives [002, SimpleCopy]."""

    name: Literal["copy"] = "copy"
    pad: bool = Field(
        default=False,
        description="Crop or zero-pad where shapes differ; useful only as a control.",
    )
