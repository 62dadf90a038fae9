"""From measurements to reasons. Each threshold stands here with what is known about it.

They are first settings, from the papers' findings and from constructed cases; measuring methods against
natively trained adapters is what will calibrate them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rebase.methods.activation.params import ActivationParams
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base_params import DareParams, DenseParams, MethodParams
from rebase.methods.cast.params import CastParams
from rebase.methods.copy.params import CopyParams
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.methods.distill.params import DistillParams
from rebase.methods.linear.params import LinearParams
from rebase.methods.prolora.params import ProLoraParams
from rebase.methods.registry import is_trained
from rebase.schemas.thresholds import Thresholds
from transfer.precheck.result import Reason, Weight

# [002]: copying works between a model and its tuned relatives, and gets worse as the distance grows. At
# 0.15 the cosine between the weights is still 0.99.
CLOSE_RELATIVES = 0.15
# Cosine 0.5 between the weights. Unrelated trainings of one shape lie at √2 ± 0.05.
UNRELATED = 1.0
# An update this large next to the weight itself has left the neighbourhood that a copy assumes ([002]: large
# updates transfer worse).
LARGE_UPDATE = 0.5
# Below half of the adapted sites, what is left is another adapter.
FEWEST_SITES = 0.5
# The catalogue's own least number of anchors.
FEWEST_ANCHORS = 64
# Less than this share of ‖ΔW‖² in the source's subspace: the result is nearly a no-op, however it is aligned.
LEAST_ENERGY_KEPT = 0.05
# Below this, more of the update is lost than kept.
HALF_ENERGY_KEPT = 0.5
# ⟨ΔW_t, ΔW_s⟩ / ‖ΔW_s‖²: below half, the rank went to the bases' difference rather than to the adapter.
HALF_SKILL_KEPT = 0.5
LEAST_SKILL_KEPT = 0.05
# Share of probe sites whose anchors say nothing: a majority decides.
MOST_UNINFORMATIVE = 0.5
# Tokenizers of one family after a few added tokens keep over 0.99; below this they are different tokenizers.
SAME_TOKENIZER = 0.9

# Pools. An anchor left out is predicted with this relative error at most (1 is what predicting zero gives);
# below the second figure more of it is right than wrong.
LEAST_POOL_ERROR = 1.0
HALF_POOL_ERROR = 0.7
# [003]: on three of five tasks the ridge prediction was the pool's mean.
IS_THE_MEAN = 0.99
HALF_SPAN = 0.5
FEW_TASKS = 8

# benchmarks/results/2026-11-22-real-pair.md: SmolLM2-135M to Gemma-3-270M, `make bench NAME=real`.
_MEASURED_GAP = (
    "On the one real pair of families measured so far, it kept about 1% of what training on the target "
    "gains; activation with solve=step and distill, which learn from text that the source writes, got much "
    "further."
)

_TRAINS = (
    "distill trains: {tokens} tokens that the source writes, at most {steps} steps. Whether it worked is "
    "measured on held-out text of the same kind."
)

_TRAINS_HEADS = (
    "cast trains maps around the adapter on general text: at most {steps} steps of sequences of {tokens} "
    "tokens. How near the target's probabilities came is measured on held-out text."
)


_STEPS = (
    "The step is solved on {tokens} tokens that the source writes, from the target's own gradients. How "
    "much it helped is measured on held-out text of the same kind."
)


def reasons(params: MethodParams, measured: Mapping[str, float], thresholds: Thresholds) -> Iterator[Reason]:
    """Every finding about this move with this method."""
    whole = is_trained(params)
    yield from _sites(measured, whole=whole)
    yield from _tokenizers(measured)
    yield from _distance(measured)
    yield from _update(measured)
    yield from _on_text(measured, thresholds, trains=whole or isinstance(params, CastParams))
    if isinstance(params, ActivationParams) and whole:
        yield Reason("steps", _STEPS.format(tokens=params.written.tokens), "info")
    if isinstance(params, DistillParams):
        yield Reason("trains", _TRAINS.format(tokens=params.tokens, steps=params.steps), "info")
    if isinstance(params, CastParams):
        yield from _cast(params, measured)
    if isinstance(params, CopyParams):
        yield from _copy(params, measured)
    if isinstance(params, DenseParams | LinearParams | ProLoraParams):
        yield from _unrelated(measured)
    if isinstance(params, DenseParams):
        yield from _dense(params, measured)
    if isinstance(params, ProLoraParams):
        yield from _prolora(measured)
    if isinstance(params, CrossLoraParams):
        yield from _cross_lora(params, measured)
    if isinstance(params, AnchorRidgeParams):
        yield from _anchor_ridge(params, measured)
    if params.dare is not None:
        yield from thinning(params.dare)


def _sites(measured: Mapping[str, float], *, whole: bool) -> Iterator[Reason]:
    """`whole`: the update is found on the target, from what the whole adapter writes, and loses no module."""
    covered = measured["sites_covered"]
    text = f"{covered:.0%} of the adapted modules have a place in the target."
    if whole and covered < 1.0:
        text += " The others take part in what the source writes, which is what the target learns from."
        yield Reason("dropped_sites", text, "info")
    elif covered < FEWEST_SITES:
        yield Reason("few_sites", text, "blocking")
    elif covered < 1.0:
        yield Reason("dropped_sites", text, "doubt")


def _tokenizers(measured: Mapping[str, float]) -> Iterator[Reason]:
    overlap = measured.get("overlap_source")
    if overlap is None:
        yield Reason("no_tokenizers", "The tokenizers could not be compared.", "info")
    elif overlap < SAME_TOKENIZER:
        yield Reason(
            "other_tokenizer",
            f"The target's tokenizer knows {overlap:.0%} of the source's tokens; "
            "an update that reacts to certain tokens may not find them.",
            "doubt",
        )


def _distance(measured: Mapping[str, float]) -> Iterator[Reason]:
    distance = measured.get("relative_distance")
    if measured["shapes_equal"] < 1.0 or distance is None:
        return
    if distance <= CLOSE_RELATIVES:
        text = f"The bases are close relatives: they differ by {distance:.3f} of their norm."
        yield Reason("close_relatives", text, "info")
    else:
        text = f"The bases differ by {distance:.2f} of their norm (unrelated ones: 1.41)."
        yield Reason("distant_bases", text, "doubt")


def _update(measured: Mapping[str, float]) -> Iterator[Reason]:
    ratio = measured.get("update_ratio", 0.0)
    if ratio > LARGE_UPDATE:
        text = f"The update is {ratio:.2f} times as large as the weights; large updates transfer worse."
        yield Reason("large_update", text, "doubt")


def _on_text(measured: Mapping[str, float], thresholds: Thresholds, *, trains: bool) -> Iterator[Reason]:
    """What both bases made of one text. Training learns from what the source writes and needs no map."""
    gravest: Weight = "doubt" if trains else "blocking"
    if (coverage := measured.get("cka_coverage")) is not None:
        text = (
            f"{coverage:.0%} of the target's layers have a source layer that sees the same text alike "
            f"(debiased CKA above {thresholds.similar:g})."
        )
        weight: Weight = (
            gravest
            if coverage < thresholds.coverage_uncertain
            else "doubt"
            if coverage < thresholds.coverage_compatible
            else "info"
        )
        yield Reason("layer_coverage", text, weight)
    # Uncentred, both are 0.8 and more between families whose adapters do not carry over at all.
    if "read_r2_centred" not in measured or "write_r2_centred" not in measured:
        return
    reads, writes = measured["read_r2_centred"], measured["write_r2_centred"]
    text = (
        f"On held-out text the target knows {max(reads, 0.0):.0%} of how tokens differ in what this adapter "
        f"reads, and {max(writes, 0.0):.0%} of how they differ in what it would write there follows from "
        "the source."
    )
    lower = min(reads, writes)
    weight = (
        gravest
        if lower < thresholds.r2_uncertain
        else "doubt"
        if lower < thresholds.r2_compatible
        else "info"
    )
    yield Reason("adapter_on_text", text, weight)


def _copy(params: CopyParams, measured: Mapping[str, float]) -> Iterator[Reason]:
    if measured["shapes_equal"] < 1.0:
        if params.pad:
            text = "Cropping and padding between different shapes carries no meaning; it is only a control."
            yield Reason("padded", text, "doubt")
        return  # without pad, the method's own refusal says it
    yield from _unrelated(measured)


def _unrelated(measured: Mapping[str, float]) -> Iterator[Reason]:
    """For methods that take coordinate j of one base for coordinate j of the other, on one side at least."""
    if measured["shapes_equal"] == 1.0 and measured.get("relative_distance", 0.0) > UNRELATED:
        text = "The bases have equal shapes but unrelated weights, so the same update means something else."
        yield Reason("unrelated_bases", text, "blocking")


def _dense(params: DenseParams, measured: Mapping[str, float]) -> Iterator[Reason]:
    text = (
        f"{params.name} mixes the bases' own difference into the update: a baseline, seldom the best choice."
    )
    yield Reason("baseline", text, "doubt")
    kept = measured.get("skill_kept")
    if kept is not None and kept < HALF_SKILL_KEPT:
        text = f"At rank {params.rank} the result holds {kept:.0%} of the adapter's own update."
        yield Reason("little_skill", text, "blocking" if kept < LEAST_SKILL_KEPT else "doubt")


def _prolora(measured: Mapping[str, float]) -> Iterator[Reason]:
    """The bundled pair keeps 0.42 here, and its loss is seven times that of a copy."""
    if "energy_parallel" not in measured:
        return
    kept = measured["energy_parallel"] + measured["energy_orthogonal"]
    if kept < HALF_ENERGY_KEPT:
        text = f"The parts inside and outside of the leading directions hold {kept:.0%} of the update."
        yield Reason("little_energy", text, "blocking" if kept < LEAST_ENERGY_KEPT else "doubt")


def thinning(params: DareParams) -> Iterator[Reason]:
    """What DARE costs, after any method."""
    if params.mode == "magnitude":
        text = "dare.mode=magnitude rescales the largest entries only, so the update becomes much larger."
        yield Reason("dare_magnitude", text, "doubt")
    share = (
        "the share of entries that measures best" if params.p == "sweep" else f"{params.p:.0%} of the entries"
    )
    text = f"DARE drops {share}, and cutting the rest to a rank loses part of it."
    yield Reason("dare", text, "doubt")


def _cross_lora(params: CrossLoraParams, measured: Mapping[str, float]) -> Iterator[Reason]:
    distance = measured.get("relative_distance")
    if measured["shapes_equal"] < 1.0 or distance is None or distance > UNRELATED:
        yield Reason("across_families", f"The bases are not relatives. {_MEASURED_GAP}", "doubt")
    if params.alignment == "index":
        text = "alignment=index pairs singular vectors by order, which is arbitrary between different models."
        yield Reason("index_alignment", text, "doubt")
    yield from _energy(measured)
    if params.alignment == "anchored":
        yield from _anchors(measured)


def _cast(params: CastParams, measured: Mapping[str, float]) -> Iterator[Reason]:
    yield Reason("trains", _TRAINS_HEADS.format(steps=params.steps, tokens=params.tokens), "info")
    if (shared := measured.get("shared_tokens", 0.0)) < FEWEST_ANCHORS:
        text = (
            f"The vocabularies share {shared:.0f} tokens; at least {FEWEST_ANCHORS} are needed to compare "
            "what the bases foretell."
        )
        yield Reason("no_shared_tokens", text, "blocking")
    if params.objective == "distribution":
        text = "objective=distribution also teaches the target what the source base says without the adapter."
        yield Reason("base_distilled", text, "doubt")


def _energy(measured: Mapping[str, float]) -> Iterator[Reason]:
    kept = measured.get("energy_kept")
    if kept is not None and kept < HALF_ENERGY_KEPT:
        text = f"The leading singular directions hold {kept:.0%} of the update; the rest is lost."
        yield Reason("little_energy", text, "blocking" if kept < LEAST_ENERGY_KEPT else "doubt")
    if "energy_source" in measured:
        text = (
            f"The directions kept hold {measured['energy_source']:.0%} of the source's weights and "
            f"{measured['energy_target']:.0%} of the target's."
        )
        yield Reason("weight_energy", text, "info")


def _anchors(measured: Mapping[str, float]) -> Iterator[Reason]:
    shared = measured.get("shared_tokens", 0.0)
    if shared < FEWEST_ANCHORS:
        text = f"The vocabularies share {shared:.0f} tokens; at least {FEWEST_ANCHORS} are needed as anchors."
        yield Reason("no_anchors", text, "blocking")
        return
    if measured.get("flag_few_anchors", 0.0) > 0.0:
        text = f"{measured['anchor_tokens']:.0f} anchors are less than two per direction that is aligned."
        yield Reason("few_anchors", text, "doubt")
    if (share := measured.get("flag_anchors_uninformative", 0.0)) > 0.0:
        text = (
            f"At {share:.0%} of the probed modules the shared tokens align the bases no better than a "
            "shuffled pairing does, and nothing else pairs them."
        )
        yield Reason("anchors_uninformative", text, "blocking" if share > MOST_UNINFORMATIVE else "doubt")


def _anchor_ridge(params: AnchorRidgeParams, measured: Mapping[str, float]) -> Iterator[Reason]:
    """What a pool knows of itself: its own anchors, predicted each from the others."""
    if "loo_error" not in measured:
        return  # the method's own refusal says it
    count, error, mean = (measured[name] for name in ("anchors", "loo_error", "loo_error_mean"))
    text = (
        f"Each of the pool's {count:.0f} tasks, predicted from the others, is missed by {error:.0%} of its "
        f"norm (by their mean: {mean:.0%})."
    )
    useless = error >= LEAST_POOL_ERROR
    yield Reason(
        "pool_error", text, "blocking" if useless else "doubt" if error > HALF_POOL_ERROR else "info"
    )
    share = measured["span_share"]
    text = f"The pool's source adapters span {share:.1%} of this update; the rest cannot come over."
    yield Reason("outside_pool", text, "doubt" if share < HALF_SPAN else "info")
    if params.predictor != "mean" and measured.get("cosine_to_mean", 0.0) > IS_THE_MEAN:
        text = "The prediction is the pool's mean, which would be the same for any adapter."
        yield Reason("pool_mean", text, "doubt")
    if measured["domain_entropy"] == 0.0:
        text = "The pool has one domain only; outside of it predictions can turn out worse than none [003]."
        yield Reason("narrow_pool", text, "doubt")
    if count < FEW_TASKS:
        yield Reason("small_pool", f"A pool of {count:.0f} tasks says little.", "doubt")
