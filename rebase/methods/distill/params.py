"""Parameters of training on text that the source and its adapter write."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rebase.methods.base_params import DistillSettings, PairedTextParams


class DistillParams(PairedTextParams, DistillSettings):
    """Train a fresh adapter on text that the source and its adapter write [2405.17258, 2510.04682]."""

    name: Literal["distill"] = "distill"
    rank: int | None = Field(
        default=None, ge=1, le=4096, description="Rank of the result; null takes the adapter's own."
    )
    init: Literal["zero", "closed_form", "step"] = Field(
        default="zero",
        description=(
            "Begin with no update, with the one that closed-form maps of activations carry, or with one "
            "preconditioned step on the written text, as `activation` takes it with `solve=step`."
        ),
    )
