"""The catalogue of methods: each one's typed parameters, torch-free, published by `GET /methods`.

Adding a method = one maths file in `transfer/methods/`, one class here, one line in `transfer/registry.py`,
one test. The union below discriminates on `name`, so that a wrong parameter is reported at its own field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class DareParams(BaseModel):
    """Drop entries of the carried update and rescale the others, after any method [000, DARE]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p: float = Field(default=0.9, gt=0.0, lt=1.0, description="Share of entries dropped.")
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
    dare: DareParams | None = Field(default=None, description="Thin the carried update out; off by default.")


class AutoParams(MethodParams):
    """Pick a method by documented rules from the pre-check's evidence; refuse when none is fit."""

    name: Literal["auto"] = "auto"


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
    alignment: Literal["anchored", "projection", "index"] = Field(
        default="anchored",
        description=(
            "How the two k-dimensional coordinate systems are matched: `anchored` by Procrustes on "
            "shared-vocabulary embeddings, `projection` onto the target's subspace alone (equal shapes), "
            "`index` by singular-value order."
        ),
    )
    anchor_tokens: int = Field(
        default=4096, ge=64, le=65536, description="Most shared tokens used as paired evidence by `anchored`."
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


class AnchorRidgeParams(MethodParams):
    """Predict the update from tasks that have an adapter on both bases [003, anchor prediction]."""

    name: Literal["anchor_ridge"] = "anchor_ridge"
    pool: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{32}$",
        description="Id of a registered anchor pool; null takes the newest one for these two bases.",
    )
    predictor: Literal[
        "mean", "global_ridge", "topk_ridge", "per_tensor_ridge", "per_tensor_pca", "procrustes"
    ] = Field(
        default="global_ridge",
        description=(
            "How the anchors are weighted: all alike, by ridge regression over whole adapters, over the "
            "nearest ones only, per site, on principal components per site, or by an orthogonal map."
        ),
    )
    space: Literal["delta", "factors"] = Field(
        default="delta",
        description="`delta` compares updates; `factors` (literal) the raw A and B, which are not unique.",
    )
    center: bool = Field(default=True, description="Predict the difference to the pool's mean.")
    penalty: float | None = Field(
        default=None,
        ge=1e-9,
        le=1e9,
        description="λ in mean eigenvalues of the kernel; null chooses it by leaving anchors out.",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description=(
            "Anchors used by topk_ridge, components by per_tensor_pca; null chooses by leaving anchors out."
        ),
    )
    rank: int | None = Field(
        default=None, ge=1, le=4096, description="Rank of the result; null keeps the adapter's own."
    )


AnyMethodParams = Annotated[
    AutoParams
    | CopyParams
    | DifferenceParams
    | LinearParams
    | WeightAverageParams
    | TiesParams
    | CrossLoraParams
    | ProLoraParams
    | AnchorRidgeParams,
    Field(discriminator="name"),
]

PARAMS_BY_NAME: dict[str, type[MethodParams]] = {
    "auto": AutoParams,
    "copy": CopyParams,
    "difference": DifferenceParams,
    "linear": LinearParams,
    "weight_average": WeightAverageParams,
    "ties": TiesParams,
    "cross_lora": CrossLoraParams,
    "prolora": ProLoraParams,
    "anchor_ridge": AnchorRidgeParams,
}

_ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyMethodParams)


def parse_params(value: str | dict[str, Any]) -> MethodParams:
    """Parameters from a name or an object. Raises pydantic's ValidationError."""
    params: MethodParams = _ADAPTER.validate_python({"name": value} if isinstance(value, str) else value)
    return params


def describe() -> list[dict[str, Any]]:
    """One entry per method: name, first sentence of its docstring, JSON schema of its parameters."""
    return [
        {
            "name": name,
            "summary": (params.__doc__ or "").strip().splitlines()[0],
            "parameters": params.model_json_schema(),
        }
        for name, params in PARAMS_BY_NAME.items()
    ]
