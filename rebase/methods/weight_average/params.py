"""Parameters of `weight_average`."""

from __future__ import annotations

from typing import Literal

from rebase.methods.base_params import DenseParams


class WeightAverageParams(DenseParams):
    """Average the fine-tuned source and the target, as an update of the target: a baseline [000]."""

    name: Literal["weight_average"] = "weight_average"
