"""Parameters of `auto`, and the union of methods that it may compare."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from rebase.methods.activation.params import ActivationParams
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base_params import MethodParams
from rebase.methods.cast.params import CastParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.difference.params import DifferenceParams
from rebase.methods.distill.params import DistillParams
from rebase.methods.geometric.params import GeometricParams
from rebase.methods.linear.params import LinearParams
from rebase.methods.prolora.params import ProLoraParams
from rebase.methods.ties.params import TiesParams
from rebase.methods.weight_average.params import WeightAverageParams

# Every runnable method; `auto` only picks one of them.
ConcreteMethodParams = (
    CopyParams
    | DifferenceParams
    | LinearParams
    | WeightAverageParams
    | TiesParams
    | CrossLoraParams
    | ProLoraParams
    | AnchorRidgeParams
    | GeometricParams
    | ActivationParams
    | CastParams
    | DistillParams
)


def expand_name(value: Any) -> Any:
    """Expand a method name to its object form."""
    return {"name": value} if isinstance(value, str) else value


CandidateParams = Annotated[ConcreteMethodParams, Field(discriminator="name")]


class AutoParams(MethodParams):
    """Choose a method by documented rules on the pre-check's measurements, or by evaluation on `evaluate`."""

    chooses_method: ClassVar[bool] = True
    uses_pool: ClassVar[bool] = True

    name: Literal["auto"] = "auto"
    train: bool = Field(
        default=False,
        description=(
            "Allow training: if no training-free method is suitable, use `distill`, which takes minutes or "
            "more."
        ),
    )
    candidates: tuple[Annotated[CandidateParams, BeforeValidator(expand_name)], ...] | None = Field(
        default=None,
        max_length=16,
        json_schema_extra={"minItems": 1},
        description=(
            "With `evaluate`: the methods to run and compare, as names or objects, simplest first. Null "
            "compares every method that suits the pair."
        ),
    )

    @field_validator("candidates")
    @classmethod
    def _require_candidates(
        cls, value: tuple[ConcreteMethodParams, ...] | None
    ) -> tuple[ConcreteMethodParams, ...] | None:
        # With min_length, pydantic would count an invalid candidate as missing and report both errors.
        if value == ():
            raise ValueError("must name at least one method or be omitted")
        return value

    @property
    def listed_candidates(self) -> tuple[MethodParams, ...] | None:
        """The candidates listed in the request."""
        return self.candidates
