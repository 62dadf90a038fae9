"""From which figures on the pre-check says what; each can be set per request."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Thresholds(BaseModel):
    """Of the pre-check on activations. The coverage's are the paper's [000]. The R²'s lie between what was
    measured: 0.83 to 0.99 where maps carried the skill, 0.26 to 0.32 where they carried nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    similar: float = Field(
        default=0.7, ge=-1.0, le=1.0, description="Debiased CKA above which two layers count as alike."
    )
    coverage_compatible: float = Field(
        default=0.7, ge=0.0, le=1.0, description="Share of target layers with a like source layer: no doubt."
    )
    coverage_uncertain: float = Field(
        default=0.5, ge=0.0, le=1.0, description="Below this share the pair is incompatible."
    )
    r2_compatible: float = Field(
        default=0.95, ge=-1.0, le=1.0, description="Centred read and write R² from which no doubt is left."
    )
    r2_uncertain: float = Field(
        default=0.5,
        ge=-1.0,
        le=1.0,
        description="Below this the adapter cannot be carried.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Thresholds:
        if self.coverage_uncertain > self.coverage_compatible or self.r2_uncertain > self.r2_compatible:
            raise ValueError("what is uncertain must not lie above what is compatible")
        return self
