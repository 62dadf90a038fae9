"""Which methods `auto` compares when it chooses by measurement."""

from __future__ import annotations

from rebase.methods.auto.params import AutoParams
from rebase.methods.auto.rules import inherit_options
from rebase.methods.base_params import MethodParams
from rebase.methods.registry import METHODS


def list_candidates(auto: MethodParams, *, has_pool: bool, allow_text: bool) -> tuple[MethodParams, ...]:
    """The methods that `auto` compares, the simplest first: those of the request, or every one there is.

    Left out of the latter: prediction from a pool where none covers the bases (`has_pool`), what makes the
    bases read a text where that is not wanted (`allow_text`), training unless it is allowed, and `cast`,
    whose long training is for a pair of bases rather than for one adapter. Whatever a pair does not admit,
    the method itself refuses. A method that was named is its only candidate.
    """
    if not isinstance(auto, AutoParams):
        return (auto,)
    if auto.candidates is not None:
        return tuple(inherit_options(auto, params) for params in auto.candidates)
    return tuple(
        inherit_options(auto, params)
        for method in METHODS.values()
        for params in method.default_candidates(
            has_pool=has_pool, allow_text=allow_text, allow_training=auto.train
        )
    )
