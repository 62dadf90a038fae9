"""Every method that can be run, by the name that requests use. The contract test runs over this table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transfer.catalogue import MethodParams
from transfer.interface import Evidence, Method
from transfer.methods.activation import Activation
from transfer.methods.anchor_ridge import AnchorRidge
from transfer.methods.cast import Cast
from transfer.methods.copy import Copy
from transfer.methods.cross_lora import CrossLora
from transfer.methods.difference import Difference
from transfer.methods.distill import Distill
from transfer.methods.geometric import Geometric
from transfer.methods.linear import Linear
from transfer.methods.prolora import ProLora
from transfer.methods.ties import Ties
from transfer.methods.weight_average import WeightAverage

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
