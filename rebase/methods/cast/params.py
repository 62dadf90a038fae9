"""Parameters of CAST."""

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
            "`shift` wants the adapter's effect on the source's next-token probabilities to be the effect "
            "on the target's; `distribution` (literal) wants the target to say what the source with its "
            "adapter says."
        ),
    )
    w_kl: float = Field(default=1.0, ge=0.0, le=1e6, description="Weight of the divergence of probabilities.")
    w_mse: float = Field(
        default=0.0,
        ge=0.0,
        le=1e6,
        description=(
            "Weight of the mean square between final hidden states, through a trained head and in units "
            "of the teacher's own; with `shift`, between the changes of these states. The paper has it, "
            "above 0."
        ),
    )
    temperature: float = Field(
        default=1.0, ge=0.1, le=100.0, description="τ that softens both sides of the divergence."
    )
    listed: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Shared tokens that are compared one by one at a position; the others count together.",
    )
    init: Literal["closed_form", "random"] = Field(
        default="closed_form",
        description="Begin with the closed-form maps of `activation`, or with random ones (literal).",
    )
    ridge: float = Field(
        default=0.1, ge=1e-9, le=1e3, description="λ of the closed-form maps, in mean eigenvalues."
    )
    tokens: int = Field(default=256, ge=16, le=4096, description="Most tokens of a sequence.")
    steps: int = Field(default=1000, ge=1, le=1_000_000, description="Most steps of training.")
    batch: int = Field(default=4, ge=1, le=1024, description="Sequences in a step.")
    learning_rate: float = Field(default=1e-3, gt=0.0, le=0.1, description="AdamW's, after the warm-up.")
    warmup: int = Field(default=20, ge=0, le=10_000, description="Steps over which the learning rate rises.")
    clip: float = Field(default=1.0, ge=0.0, le=1e6, description="Longest gradient; 0 leaves it as it is.")
    evaluate_every: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Steps between measurements on every eighth sequence, which is never trained on.",
    )
    patience: int = Field(
        default=4,
        ge=0,
        le=1000,
        description="Measurements in a row without a better one that end the training; 0 does all steps.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="What products are computed in; parameters stay float32."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Decides the order of text, and random heads.")
    reuse: bool = Field(
        default=False,
        description=(
            "Use heads that were trained for another adapter of these bases with these settings, if there "
            "are any that this request may see: no training then, less of this adapter where it reads "
            "elsewhere, and a result that depends on which job came first."
        ),
    )
