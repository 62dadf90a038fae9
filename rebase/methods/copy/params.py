"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class CopyParams(MethodParams):
    """Take the update over unchanged. The baseline to beat between close relatives [002, SimpleCopy]."""

    name: Literal["copy"] = "copy"
    pad: bool = Field(
        default=False,
        description="Crop or zero-pad where shapes differ: a control to measure against, nothing more.",
    )
