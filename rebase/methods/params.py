"""The typed parameters of every method, torch-free; published by `GET /methods`.

To add a method, create a folder with `params.py` and `method.py`, list the classes here, in `auto/params.py`
and in `registry.py`, and write a test. The unions here and in `auto` discriminate on `name`, so that an
invalid parameter is reported at its own field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from rebase.methods.activation.params import ActivationParams
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.auto.params import AutoParams, ConcreteMethodParams
from rebase.methods.base_params import (
    DareParams,
    DenseParams,
    DistillSettings,
    MethodParams,
    PairedTextParams,
    RefineParams,
    SamplingParams,
)
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
from rebase.schemas.thresholds import Thresholds

__all__ = [
    "PARAMS_BY_NAME",
    "ActivationParams",
    "AnchorRidgeParams",
    "AnyMethodParams",
    "AutoParams",
    "CastParams",
    "ConcreteMethodParams",
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
    "SamplingParams",
    "Thresholds",
    "TiesParams",
    "WeightAverageParams",
    "describe",
    "format_method",
    "parse_params",
]

AnyMethodParams = Annotated[AutoParams | ConcreteMethodParams, Field(discriminator="name")]

PARAMS_BY_NAME: dict[str, type[MethodParams]] = {
    params.model_fields["name"].default: params
    for params in (
        AutoParams,
        CopyParams,
        DifferenceParams,
        LinearParams,
        WeightAverageParams,
        TiesParams,
        CrossLoraParams,
        ProLoraParams,
        AnchorRidgeParams,
        GeometricParams,
        ActivationParams,
        CastParams,
        DistillParams,
    )
}
DEFAULT_METHOD: str = AutoParams().name

_NESTED: dict[str, tuple[type[BaseModel], str]] = {
    "dare": (DareParams, "p"),
    "refine": (RefineParams, "steps"),
}
_MAX_VALUE_CHARS = 40
_PARAMS_ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyMethodParams)


def parse_params(value: str | dict[str, Any]) -> MethodParams:
    """Parse parameters from a method name or an object. Raises pydantic's ValidationError."""
    params: MethodParams = _PARAMS_ADAPTER.validate_python(
        {"name": value} if isinstance(value, str) else value
    )
    return params


def format_method(method: Mapping[str, Any]) -> str:
    """A one-line, human-readable form: the method's name and every setting that differs from its default."""
    params = PARAMS_BY_NAME[method["name"]]
    settings = ", ".join(
        f"{key}={_abbreviate(value)}" for key, value in _iter_changed_settings(method, params)
    )
    return f"{method['name']} ({settings})" if settings else str(method["name"])


def _iter_changed_settings(
    given: Mapping[str, Any], model: type[BaseModel], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; for DARE and refinement, the main setting is always included."""
    for key, default in model().model_dump(mode="json").items():
        value = given.get(key, default)
        if key == "name" or value == default:
            continue
        if key in _NESTED:
            inner, main_field = _NESTED[key]
            nested_changes = dict(_iter_changed_settings(value, inner, f"{key}."))
            yield from ({f"{key}.{main_field}": value[main_field]} | nested_changes).items()
        else:
            yield f"{prefix}{key}", value


def _abbreviate(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 1]}…"


def describe() -> list[dict[str, Any]]:
    """One entry per method: name, first line of its docstring, JSON schema of its parameters."""
    return [
        {
            "name": name,
            "summary": (params.__doc__ or "").strip().splitlines()[0],
            "parameters": params.model_json_schema(),
        }
        for name, params in PARAMS_BY_NAME.items()
    ]
