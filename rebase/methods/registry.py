"""All runnable methods by the name used in requests. The contract test covers every entry."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rebase.methods.activation.method import Activation
from rebase.methods.anchor_ridge.method import AnchorRidge
from rebase.methods.base import Method
from rebase.methods.base_params import MethodParams
from rebase.methods.cast.method import Cast
from rebase.methods.copy.method import Copy
from rebase.methods.cross_lora.method import CrossLora
from rebase.methods.difference.method import Difference
from rebase.methods.distill.method import Distill
from rebase.methods.geometric.method import Geometric
from rebase.methods.linear.method import Linear
from rebase.methods.prolora.method import ProLora
from rebase.methods.ties.method import Ties
from rebase.methods.weight_average.method import WeightAverage

# Simplest first: `auto` compares them in this order, and ties go to the first.
METHODS: Mapping[str, Method[Any]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Copy(),
            Linear(),
            ProLora(),
            Difference(),
            WeightAverage(),
            Ties(),
            CrossLora(),
            AnchorRidge(),
            Geometric(),
            Activation(),
            Cast(),
            Distill(),
        )
    }
)


def get_method(name: str) -> Method[Any]:
    """The method with this name. Raises KeyError for `auto`, which must be resolved to a method first."""
    return METHODS[name]


def is_trained(params: MethodParams) -> bool:
    """Is the target's update trained (`Method.is_trained`)? False for `auto`, which has not chosen yet."""
    return not params.chooses_method and get_method(params.name).is_trained(params)
