"""Which methods `auto` compares when it chooses by measurement."""

from __future__ import annotations

from rebase.methods.auto.params import AutoParams
from rebase.methods.auto.rules import inherit_options
from rebase.methods.base_params import MethodParams
from rebase.methods.registry import METHODS


def list_candidates(auto: MethodParams, *, has_pool: bool, allow_text: bool) -> tuple[MethodParams, ...]:
    """The methods that `auto` compares, simplest first: those listed in the request, or all of them.

    By default this excludes pool prediction without a pool for the bases (`has_pool`), methods that run the
    bases on a text unless `allow_text`, training unless it is allowed, and `cast`, whose long training is
    meant for a pair of bases rather than for one adapter. Methods reject unsuitable pairs themselves. A
    method other than `auto` is its own only candidate.
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
