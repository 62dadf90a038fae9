"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class LinearParams(MethodParams):
    """Apply the linear map that best turns one base weight into the other [002, SimpleLinear]."""

    name: Literal["linear"] = "linear"
    side: Literal["output", "input"] = Field(
        default="output",
        description="`output` maps what the site writes, `input` (the paper's orientation) what it reads.",
    )
    ridge: float = Field(
        default=1e-3, ge=1e-8, le=1e3, description="λ as a share of the Gram matrix's mean eigenvalue."
    )
