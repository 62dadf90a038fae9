"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class CrossLoraParams(MethodParams):
    """Project the update through the leading singular subspaces of both bases [001, Cross-LoRA]."""

    name: Literal["cross_lora"] = "cross_lora"
    rank: int = Field(
        default=320, ge=1, le=16384, description="Singular directions kept of each base weight."
    )
    alignment: Literal["anchored", "activations", "projection", "index"] = Field(
        default="anchored",
        description=(
            "How the two k-dimensional coordinate systems are matched: `anchored` by Procrustes on "
            "shared-vocabulary embeddings, `activations` by Procrustes on what both bases compute from the "
            "same text, `projection` onto the target's subspace alone (equal shapes), "
            "`index` by singular-value order."
        ),
    )
    anchor_tokens: int = Field(
        default=4096,
        ge=64,
        le=65536,
        description=(
            "Most shared tokens used as paired evidence by `anchored`, most token positions by `activations`."
        ),
    )
    norm: Literal["keep", "preserve"] = Field(
        default="keep",
        description="`preserve` rescales each site to the Frobenius norm of the source's update.",
    )
    orthogonalize: bool = Field(
        default=False,
        description=(
            "Move the update's singular directions apart from their sizes, and make the moved directions "
            "orthogonal again [2505.15875, read for one update]."
        ),
    )
    sweep: tuple[Annotated[int, Field(ge=1, le=16384)], ...] = Field(
        default=(),
        max_length=8,
        description=(
            "Further ranks to measure in the same pass, as 80, 160, 320 and 480 in the paper. Factors are "
            "computed once, at the largest; the adapter is still moved at `rank`."
        ),
    )
