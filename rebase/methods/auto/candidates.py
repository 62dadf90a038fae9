"""Which of several methods, by what they score on a task: chosen on one half of the examples, confirmed on
the other half.

The best of many scores is too good partly by luck, so the half that chose does not tell what the winner is
worth. The other half, which no candidate was picked on, does; and it has a veto, so that nothing is kept that
scores below the target alone on examples that had no part in its choice.
"""

from __future__ import annotations

from rebase.methods.activation.params import ActivationParams
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.auto.choose import handed_on
from rebase.methods.auto.params import AutoParams
from rebase.methods.base_params import MethodParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.difference.params import DifferenceParams
from rebase.methods.distill.params import DistillParams
from rebase.methods.geometric.params import GeometricParams
from rebase.methods.linear.params import LinearParams
from rebase.methods.prolora.params import ProLoraParams
from rebase.methods.ties.params import TiesParams
from rebase.methods.weight_average.params import WeightAverageParams


def list_candidates(auto: AutoParams, *, has_pool: bool, allow_text: bool) -> tuple[MethodParams, ...]:
    """The methods that `auto` compares, the simplest first: those of the request, or every one there is.

    Left out of the latter: prediction from a pool where none covers the bases (`pool`), what makes the bases
    read a text where that is not wanted (`text`), training unless it is allowed, and `cast`, whose long
    training is for a pair of bases rather than for one adapter. Whatever a pair does not admit, the method
    itself refuses.
    """
    if auto.candidates is not None:
        return tuple(handed_on(auto, params) for params in auto.candidates)
    all_methods: tuple[MethodParams, ...] = (
        CopyParams(),
        LinearParams(),
        ProLoraParams(),
        DifferenceParams(),
        WeightAverageParams(),
        TiesParams(),
        CrossLoraParams(),
        *((AnchorRidgeParams(),) if has_pool else ()),
        *((GeometricParams(), ActivationParams(), ActivationParams(solve="step")) if allow_text else ()),
        *((DistillParams(),) if auto.train else ()),
    )
    return tuple(handed_on(auto, params) for params in all_methods)
