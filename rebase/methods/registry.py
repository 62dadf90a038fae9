"""Every method that can be run, by the name that requests use. The contract test runs over this table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rebase.methods.activation.method import Activation
from rebase.methods.anchor_ridge.method import AnchorRidge
from rebase.methods.base import Evidence, Method
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

METHODS: Mapping[str, Method[Any]] = MappingProxyType(
    {
        method.name: method
        for method in (
            Copy(),
            Difference(),
            Linear(),
            WeightAverage(),
            Ties(),
            CrossLora(),
            ProLora(),
            AnchorRidge(),
            Geometric(),
            Activation(),
            Cast(),
            Distill(),
        )
    }
)


def get_method(name: str) -> Method[Any]:
    """The method of that name. `auto` is none: `transfer.precheck` resolves it to one first (KeyError)."""
    return METHODS[name]


def is_trained(params: MethodParams) -> bool:
    """Is the update trained on the target? It is then the target layer's own, shared out among none, and no
    module of the source is lost: the source wrote with its whole adapter."""
    return Evidence.TRAINED in get_method(params.name).needs(params)
