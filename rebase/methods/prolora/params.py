"""Parameters of `prolora`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class ProLoraParams(MethodParams):
    """Transfer the parts inside and outside the base's leading directions separately [002, ProLoRA]."""

    name: Literal["prolora"] = "prolora"
    energy: float = Field(
        default=0.95, gt=0.0, le=1.0, description="Share of ‖W‖² that the leading directions of a base hold."
    )
    rank: int = Field(
        default=1024, ge=1, le=16384, description="Maximum singular directions computed per base weight."
    )
    perp: Literal["complement", "residual"] = Field(
        default="complement",
        description=(
            "The outside part: `complement` is outside both source subspaces, `residual` is everything that "
            "is not inside both."
        ),
    )
    truncate: bool = Field(
        default=True, description="Truncate to the adapter's rank; otherwise both parts' ranks add up."
    )
