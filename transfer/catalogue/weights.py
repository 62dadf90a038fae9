"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from transfer.catalogue.base import MethodParams


class CopyParams(MethodParams):
    """Take the update over unchanged. The baseline to beat between close relatives [002, SimpleCopy]."""

    name: Literal["copy"] = "copy"
    pad: bool = Field(
        default=False,
        description="Crop or zero-pad where shapes differ: a control to measure against, nothing more.",
    )


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


class DenseParams(MethodParams):
    """What the methods that mix whole base weights share."""

    rank: int = Field(
        default=64, ge=1, le=4096, description="Rank kept of the dense result; what is lost is reported."
    )


class DifferenceParams(DenseParams):
    """Add the base's own move to the update, cut to a rank [002, SimpleDifference]."""

    name: Literal["difference"] = "difference"
    gamma: float = Field(
        default=1.0, ge=-10.0, le=10.0, description="Factor of W_t − W_s; the paper takes +1."
    )


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


class WeightAverageParams(DenseParams):
    """The mean of tuned source and target as an update of the target: a baseline to be beaten [000]."""

    name: Literal["weight_average"] = "weight_average"


class TiesParams(DenseParams):
    """Trim, elect signs and average the update with the way back to the source: a baseline [000, TIES]."""

    name: Literal["ties"] = "ties"
    density: float = Field(
        default=0.2, gt=0.0, le=1.0, description="Share of entries that each side keeps, by magnitude."
    )


class ProLoraParams(MethodParams):
    """Move the parts inside and outside of the base's leading directions apart [002, ProLoRA]."""

    name: Literal["prolora"] = "prolora"
    energy: float = Field(
        default=0.95, gt=0.0, le=1.0, description="Share of ‖W‖² that the leading directions of a base hold."
    )
    rank: int = Field(
        default=1024, ge=1, le=16384, description="Most singular directions computed of each base weight."
    )
    perp: Literal["complement", "residual"] = Field(
        default="complement",
        description="The part outside: off both source subspaces, or all that is not inside both.",
    )
    truncate: bool = Field(
        default=True, description="Cut the result to the adapter's rank; otherwise both parts' ranks add up."
    )
