"""What every method's parameters share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from transfer.catalogue.written import RefineParams


class DareParams(BaseModel):
    """Drop entries of the carried update and rescale the others, after any method [000, DARE]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p: Annotated[float, Field(gt=0.0, lt=1.0)] | Literal["sweep"] = Field(
        default=0.9,
        description=(
            "Share of entries dropped. `sweep` tries 0, 0.8, 0.9, 0.95 and 0.99 and keeps the best by "
            "measurement; it needs `evaluate`."
        ),
    )
    mode: Literal["random", "magnitude"] = Field(
        default="random",
        description="`random` is unbiased; `magnitude` (literal) makes the update several times as long.",
    )
    rank: int | None = Field(
        default=None, ge=1, le=4096, description="Rank of the result; null keeps the update's own."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides which entries are dropped.")


class MethodParams(BaseModel):
    """What every method's parameters share. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    layer_scale: bool = Field(
        default=True,
        description="Divide an update by the number of target layers that share its source layer.",
    )
    fold: bool = Field(
        default=False,
        description=(
            "Where the source is deeper, add up the updates of all its layers that belong to one target "
            "layer and cut the sum to the adapter's rank; otherwise each target layer takes one layer's."
        ),
    )
    refine: RefineParams | None = Field(
        default=None,
        description="Train the carried update on a little text that the source writes; off by default.",
    )
    dare: DareParams | None = Field(default=None, description="Thin the carried update out; off by default.")
