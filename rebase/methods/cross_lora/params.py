"""Parameters of `cross_lora`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class CrossLoraParams(MethodParams):
    """Project the update through the leading singular subspaces of both bases [001, Cross-LoRA]."""

    name: Literal["cross_lora"] = "cross_lora"
    rank: int = Field(default=320, ge=1, le=16384, description="Singular directions to keep per base weight.")
    alignment: Literal["anchored", "activations", "projection", "index"] = Field(
        default="anchored",
        description=(
            "How the two k-dimensional coordinate systems are matched: `anchored` by orthogonal Procrustes "
            "on embeddings of shared tokens, `activations` by orthogonal Procrustes on both bases' "
            "activations on the same text, `projection` by projecting onto the target's subspace (equal "
            "shapes only), `index` by singular-value order."
        ),
    )
    anchor_tokens: int = Field(
        default=4096,
        ge=64,
        le=65536,
        description=(
            "Maximum shared tokens to align on with `anchored`, or token positions with `activations`."
        ),
    )
    norm: Literal["keep", "preserve"] = Field(
        default="keep",
        description="`preserve` rescales each site to the Frobenius norm of the source's update.",
    )
    orthogonalize: bool = Field(
        default=False,
        description=(
            "Project the update's singular directions separately from its singular values, and orthogonalize "
            "the projected directions [2505.15875, adapted to a single update]."
        ),
    )
    sweep: tuple[Annotated[int, Field(ge=1, le=16384)], ...] = Field(
        default=(),
        max_length=8,
        description=(
            "Further ranks to measure in the same pass, such as 80, 160, 320 and 480 in the paper. Factors "
            "are computed once, at the largest rank; the adapter is still transferred at `rank`."
        ),
    )
