"""Parameters of the methods that look at paired activations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import PairedTextParams, SamplingParams


class ActivationParams(PairedTextParams):
    """Closed-form maps between what the two bases read and write on the same text."""

    name: Literal["activation"] = "activation"
    fold: bool = Field(
        default=True,
        description=(
            "Where the source is deeper, add up the updates of all its layers that belong to one target "
            "layer and cut the sum to the adapter's rank."
        ),
    )
    ridge: float = Field(
        default=0.1,
        ge=1e-9,
        le=1e3,
        description="λ in mean eigenvalues: small over-fits single directions, large shrinks the update.",
    )
    norm: Literal["keep", "preserve"] = Field(
        default="keep",
        description="`preserve` rescales each site to the Frobenius norm of the source's update.",
    )
    solve: Literal["maps", "step", "both"] = Field(
        default="maps",
        description=(
            "`maps` carries the update through regressions between the two bases. `step` solves for what the "
            "target's own gradients ask for on text that the source and its adapter write: one pass forward "
            "and back, and a line search. `both` takes the step from what the maps carry, where that helps."
        ),
    )
    written: SamplingParams = Field(
        default=SamplingParams(), description="The text that the step is solved on."
    )
