"""Parameters of `linear`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class LinearParams(MethodParams):
    """Apply the linear map that best fits one base weight to the other [002, SimpleLinear]."""

    name: Literal["linear"] = "linear"
    side: Literal["output", "input"] = Field(
        default="output",
        description="`output` maps the output side (B); `input` (as in the paper) maps the input side (A).",
    )
    ridge: float = Field(
        default=1e-3, ge=1e-8, le=1e3, description="λ in units of the Gram matrix's mean eigenvalue."
    )
