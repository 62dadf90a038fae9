"""Parameters of the methods that predict from a pool of anchors."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rebase.methods.base_params import MethodParams


class AnchorRidgeParams(MethodParams):
    """Predict the update from tasks that have an adapter on both bases [003, anchor prediction]."""

    uses_pool: ClassVar[bool] = True

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

    @property
    def pool_id(self) -> str | None:
        """The registered pool that the request names."""
        return self.pool
