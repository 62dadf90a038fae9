"""The catalogue of methods: each one's typed parameters, torch-free, published by `GET /methods`.

Adding a method = one maths file in `transfer/methods/`, one class in this folder, one line in
`transfer/registry.py`, one test. The union below discriminates on `name`, so that a wrong parameter is
reported at its own field.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from transfer.catalogue.activations import ActivationParams, GeometricParams, PairedTextParams
from transfer.catalogue.base import AutoParams, DareParams, MethodParams
from transfer.catalogue.cast import CastParams
from transfer.catalogue.distill import DistillParams, DistillSettings, RefineParams
from transfer.catalogue.pools import AnchorRidgeParams
from transfer.catalogue.thresholds import Thresholds
from transfer.catalogue.weights import (
    CopyParams,
    CrossLoraParams,
    DenseParams,
    DifferenceParams,
    LinearParams,
    ProLoraParams,
    TiesParams,
    WeightAverageParams,
)

__all__ = [
    "PARAMS_BY_NAME",
    "ActivationParams",
    "AnchorRidgeParams",
    "AnyMethodParams",
    "AutoParams",
    "CastParams",
    "CopyParams",
    "CrossLoraParams",
    "DareParams",
    "DenseParams",
    "DifferenceParams",
    "DistillParams",
    "DistillSettings",
    "GeometricParams",
    "LinearParams",
    "MethodParams",
    "PairedTextParams",
    "ProLoraParams",
    "RefineParams",
    "Thresholds",
    "TiesParams",
    "WeightAverageParams",
    "describe",
    "parse_params",
]

AnyMethodParams = Annotated[
    AutoParams
    | CopyParams
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
    | DistillParams,
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
    "geometric": GeometricParams,
    "activation": ActivationParams,
    "cast": CastParams,
    "distill": DistillParams,
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
