"""`auto`: how it chooses a method by rules.

1. All sites have equal shapes and the bases share their coordinates → `copy`. Between close relatives it does
   better than anything more elaborate [002].
2. Otherwise, there is an anchor pool that predicts its own anchors → `anchor_ridge` [003].
3. Otherwise, training is allowed → `distill`: no closed-form map transferred a skill in our tests.
4. Otherwise, both bases are run on a text anyway, and their layers and this adapter's directions are similar
   on it → `activation`. It is not worth running both bases for: on the one real pair of families measured,
   its maps closed 1.4 % of the gap and `cross_lora` 0.7 to 1.2 %. Its step on generated text closes more of
   the loss gap but yields no correct answers, so only evaluation may choose it.
5. Otherwise → `cross_lora` with `anchored`, the only weight-based alignment across shapes that uses evidence.

`index` is never chosen: it pairs unrelated directions. Whether the chosen method is good enough is decided by
the verdict; for 4 and 5, a finding says what training would achieve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from rebase.methods.activation.params import ActivationParams
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.auto.params import AutoParams
from rebase.methods.base_params import MethodParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.distill.params import DistillParams
from rebase.methods.findings import Finding
from rebase.schemas.thresholds import Thresholds

P = TypeVar("P", bound=MethodParams)

# A relative_distance of d means a cosine of about 1 − d²/2 between the two weights. At 0.7 that is 0.75, far
# above the 0 of independent training runs (d = √2), so coordinate j still means the same in both bases.
MAX_SHARED_DISTANCE = 0.7

_THRESHOLDS = Thresholds()
# benchmarks/results/2026-11-22-real-pair.md and 2026-11-24-activations-real.md.
_WOULD_TRAIN = (
    "No closed-form map transferred a skill between unrelated bases in our tests: at most 1.4% of the gain "
    "from training on the target, where activation with solve=step reached 42% without training, and "
    "distill more. method.train=true allows distill."
)


def choose(
    params: MethodParams,
    measured: Mapping[str, float],
    thresholds: Thresholds = _THRESHOLDS,
    *,
    without_pool: bool = False,
) -> tuple[MethodParams, tuple[Finding, ...]]:
    """Parameters of the method to run, and findings that explain the choice. Other methods than `auto` are
    returned unchanged.

    `measured` holds `shapes_equal`; if shapes agree, `relative_distance`; if a pool covers the bases,
    `pool_anchors` (ignored with `without_pool`); if both bases were run on a text, `cka_coverage`,
    `read_r2_centred` and `write_r2_centred`.
    """
    if not isinstance(params, AutoParams):
        return params, ()
    distance = measured.get("relative_distance")
    if measured["shapes_equal"] == 1.0 and distance is not None and distance <= MAX_SHARED_DISTANCE:
        return _build_choice(
            params, CopyParams(), f"shapes agree and the bases differ by {distance:.3f} of their norm"
        )
    mismatch = _describe_mismatch(measured)
    if (size := measured.get("pool_anchors", 0.0)) > 0.0 and not without_pool:
        why = f"{mismatch}, and a pool has {size:.0f} tasks with adapters on both bases"
        return _build_choice(params, AnchorRidgeParams(), why)
    if params.train:
        why = f"{mismatch}, and training is allowed, which is what works in that case"
        return _build_choice(params, DistillParams(), why)
    if _reads_alike(measured, thresholds.coverage_uncertain, thresholds.r2_uncertain):
        why = (
            f"{mismatch}, and on the same text, their layers and the directions that this adapter uses are "
            "similar"
        )
        sure = _reads_alike(measured, thresholds.coverage_compatible, thresholds.r2_compatible)
        chosen, because = _build_choice(params, ActivationParams(), why)
        return chosen, (*because, Finding("auto_would_train", _WOULD_TRAIN, "info" if sure else "doubt"))
    why = f"{mismatch}, so copying would be meaningless"
    chosen, because = _build_choice(params, CrossLoraParams(), why, "cross_lora with anchored alignment")
    return chosen, (*because, Finding("auto_would_train", _WOULD_TRAIN, "doubt"))


def inherit_options(auto: AutoParams, params: P) -> P:
    """The chosen method's parameters with the options of `auto` that apply to any method."""
    return params.model_copy(
        update={
            "layer_scale": auto.layer_scale and params.layer_scale,
            "fold": auto.fold or params.fold,
            "refine": params.refine or auto.refine,
            "dare": params.dare or auto.dare,
        }
    )


def _build_choice(
    auto: AutoParams, params: MethodParams, why: str, named: str | None = None
) -> tuple[MethodParams, tuple[Finding, ...]]:
    sentence = f"auto chose {named or params.name}: {why}."
    return inherit_options(auto, params), (Finding(f"auto_{params.name}", sentence, "info"),)


def _describe_mismatch(measured: Mapping[str, float]) -> str:
    """Why `copy` is not an option."""
    if measured["shapes_equal"] < 1.0:
        return "shapes differ"
    distance = measured.get("relative_distance")
    return (
        f"the bases differ by {distance:.2f} of their norm"
        if distance is not None
        else "the base weights are zero"
    )


def _reads_alike(measured: Mapping[str, float], coverage: float, r2: float) -> bool:
    """Were both bases run on a text, with at least this layer coverage and R² for the adapter?"""
    r2s = [measured.get(name, -1.0) for name in ("read_r2_centred", "write_r2_centred")]
    return measured.get("cka_coverage", -1.0) >= coverage and min(r2s) >= r2
