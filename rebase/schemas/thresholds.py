"""Thresholds of the pre-check's verdict; each can be set per request."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Thresholds(BaseModel):
    """For the pre-check on activations. The coverage thresholds are the paper's [000]. The R² thresholds lie
    between measured values: 0.83 to 0.99 where maps transferred the skill, 0.26 to 0.32 elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    similar: float = Field(
        default=0.7, ge=-1.0, le=1.0, description="Debiased CKA above which two layers are similar."
    )
    coverage_compatible: float = Field(
        default=0.7,
        ge=0.0,
        le=1.0,
        description="Compatible from this share of target layers with a similar source layer.",
    )
    coverage_uncertain: float = Field(
        default=0.5, ge=0.0, le=1.0, description="Below this share the pair is incompatible."
    )
    r2_compatible: float = Field(
        default=0.95, ge=-1.0, le=1.0, description="Compatible from this centred read and write R²."
    )
    r2_uncertain: float = Field(
        default=0.5,
        ge=-1.0,
        le=1.0,
        description="Below this the adapter cannot be transferred.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Thresholds:
        if self.coverage_uncertain > self.coverage_compatible or self.r2_uncertain > self.r2_compatible:
            raise ValueError("the threshold for uncertain must not exceed the one for compatible")
        return self
