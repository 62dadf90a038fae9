"""Parameters of the methods that look at weights alone."""

from __future__ import annotations

from typing import Literal

from rebase.methods.base_params import DenseParams


class WeightAverageParams(DenseParams):
    """The mean of tuned source and target as an update of the target: a baseline to be beaten [000]."""

    name: Literal["weight_average"] = "weight_average"
