"""Every method that can be run, by the name that requests use. The contract test runs over this table."""

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

# The simplest first: `auto` compares them in this order and keeps the first of equals.
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
    """The method of that name. `auto` is none: it is resolved to one first (KeyError)."""
    return METHODS[name]


def is_trained(params: MethodParams) -> bool:
    """Is the target's update trained as a whole (`Method.is_trained`)? Not known yet where a rule chooses."""
    return not params.chooses_method and get_method(params.name).is_trained(params)
