"""Parameters of `anchor_ridge`."""

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
        description="Id of a registered anchor pool; null uses the newest one for these two bases.",
    )
    predictor: Literal[
        "mean", "global_ridge", "topk_ridge", "per_tensor_ridge", "per_tensor_pca", "procrustes"
    ] = Field(
        default="global_ridge",
        description=(
            "How anchors are weighted: equally; by ridge regression on whole adapters, on the nearest "
            "anchors only, per site, or on principal components per site; or by orthogonal Procrustes."
        ),
    )
    space: Literal["delta", "factors"] = Field(
        default="delta",
        description="`delta` compares updates; `factors` (as printed) the raw A and B, which are not unique.",
    )
    center: bool = Field(default=True, description="Predict the difference from the pool's mean.")
    penalty: float | None = Field(
        default=None,
        ge=1e-9,
        le=1e9,
        description="λ in units of the kernel's mean eigenvalue; null chooses it by leave-one-out.",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description=(
            "Anchors used by topk_ridge or components used by per_tensor_pca; null chooses by leave-one-out."
        ),
    )
    rank: int | None = Field(
        default=None, ge=1, le=4096, description="Rank of the result; null keeps the adapter's rank."
    )

    @property
    def pool_id(self) -> str | None:
        """Id of the registered pool named in the request."""
        return self.pool
