"""Parameters of `cast`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import PairedTextParams


class CastParams(PairedTextParams):
    """Train maps between both bases' activations around the frozen adapter, and fold them into it [004]."""

    name: Literal["cast"] = "cast"
    objective: Literal["shift", "distribution"] = Field(
        default="shift",
        description=(
            "`shift` matches the adapter's effect on next-token probabilities between source and target; "
            "`distribution` (as printed) matches the target's probabilities to those of the source with its "
            "adapter."
        ),
    )
    w_kl: float = Field(default=1.0, ge=0.0, le=1e6, description="Weight of the KL divergence.")
    w_mse: float = Field(
        default=0.0,
        ge=0.0,
        le=1e6,
        description=(
            "Weight of the mean squared error between final hidden states, through a trained map and "
            "relative to the teacher's norm; with `shift`, between the changes of these states. The paper "
            "uses a weight above 0."
        ),
    )
    temperature: float = Field(
        default=1.0, ge=0.1, le=100.0, description="Temperature τ applied to both sides of the divergence."
    )
    listed: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Shared tokens compared individually at each position; the rest are pooled.",
    )
    init: Literal["closed_form", "random"] = Field(
        default="closed_form",
        description="Initialise with the closed-form maps of `activation`, or randomly (as printed).",
    )
    ridge: float = Field(
        default=0.1,
        ge=1e-9,
        le=1e3,
        description="λ of the closed-form maps, in units of the mean eigenvalue.",
    )
    tokens: int = Field(default=256, ge=16, le=4096, description="Maximum tokens per sequence.")
    steps: int = Field(default=1000, ge=1, le=1_000_000, description="Maximum number of training steps.")
    batch: int = Field(default=4, ge=1, le=1024, description="Sequences per step.")
    learning_rate: float = Field(
        default=1e-3, gt=0.0, le=0.1, description="AdamW learning rate after warm-up."
    )
    warmup: int = Field(default=20, ge=0, le=10_000, description="Number of warm-up steps.")
    clip: float = Field(
        default=1.0, ge=0.0, le=1e6, description="Maximum gradient norm; 0 disables clipping."
    )
    evaluate_every: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Steps between evaluations on the held-out sequences (every eighth).",
    )
    patience: int = Field(
        default=4,
        ge=0,
        le=1000,
        description="Evaluations without improvement before training stops early; 0 runs all steps.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Compute precision; parameters stay in float32."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed for the text order and random initialisation."
    )
    reuse: bool = Field(
        default=False,
        description=(
            "Reuse maps trained for another adapter of these bases with the same settings, if this request "
            "may see any. This skips training, but loses the part of the adapter that acts in other "
            "directions, and the result depends on which job ran first."
        ),
    )
