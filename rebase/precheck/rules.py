"""Findings that apply to every method, derived from measurements, with the rationale for each threshold.

The thresholds are initial settings, based on the papers' results and on constructed cases; comparing methods
with natively trained adapters calibrates them. Findings of a single method are in that method's file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rebase.methods.base import Evidence
from rebase.methods.base_params import DareParams, MethodParams
from rebase.methods.findings import Finding, Weight
from rebase.methods.registry import get_method
from rebase.schemas.thresholds import Thresholds

# [002]: copying works between a model and its fine-tuned relatives, and degrades with distance. At 0.15 the
# cosine between the weights is still 0.99.
CLOSE_DISTANCE = 0.15
# An update this large relative to the weight leaves the neighbourhood in which copying is valid ([002]: large
# updates transfer worse).
LARGE_UPDATE = 0.5
# With fewer than half of the adapted sites, the result is effectively a different adapter.
MIN_SITES_COVERED = 0.5
# Tokenizers of one family that differ by a few added tokens overlap by more than 0.99.
SAME_TOKENIZER = 0.9


def list_findings(
    params: MethodParams, measured: Mapping[str, float], thresholds: Thresholds
) -> Iterator[Finding]:
    """All findings about this transfer with this method."""
    method = get_method(params.name)
    needs = method.needs(params)
    trained = method.is_trained(params)
    yield from _check_sites(measured, trained=trained)
    yield from _check_tokenizers(measured)
    yield from _check_distance(measured)
    yield from _check_update_size(measured)
    yield from _check_activations(
        measured, thresholds, trains=bool(needs & {Evidence.TRAINED, Evidence.MAPS})
    )
    yield from method.findings(params, measured)
    if params.dare is not None:
        yield from find_dare_losses(params.dare)


def _check_sites(measured: Mapping[str, float], *, trained: bool) -> Iterator[Finding]:
    """`trained`: the update is trained on text generated with the complete adapter, so no module is lost."""
    covered = measured["sites_covered"]
    text = f"{covered:.0%} of the adapted modules have a counterpart in the target."
    if trained and covered < 1.0:
        text += " The others still contribute to the source's generated text, from which the target learns."
        yield Finding("dropped_sites", text, "info")
    elif covered < MIN_SITES_COVERED:
        yield Finding("few_sites", text, "blocking")
    elif covered < 1.0:
        yield Finding("dropped_sites", text, "doubt")


def _check_tokenizers(measured: Mapping[str, float]) -> Iterator[Finding]:
    overlap = measured.get("overlap_source")
    if overlap is None:
        yield Finding("no_tokenizers", "The tokenizers could not be compared.", "info")
    elif overlap < SAME_TOKENIZER:
        yield Finding(
            "other_tokenizer",
            f"The target's tokenizer knows {overlap:.0%} of the source's tokens; updates that respond to "
            "specific tokens may not work.",
            "doubt",
        )


def _check_distance(measured: Mapping[str, float]) -> Iterator[Finding]:
    distance = measured.get("relative_distance")
    if measured["shapes_equal"] < 1.0 or distance is None:
        return
    if distance <= CLOSE_DISTANCE:
        text = f"The bases are close relatives: they differ by {distance:.3f} of their norm."
        yield Finding("close_relatives", text, "info")
    else:
        text = f"The bases differ by {distance:.2f} of their norm (unrelated ones: 1.41)."
        yield Finding("distant_bases", text, "doubt")


def _check_update_size(measured: Mapping[str, float]) -> Iterator[Finding]:
    ratio = measured.get("update_ratio", 0.0)
    if ratio > LARGE_UPDATE:
        text = f"The update is {ratio:.2f} times as large as the weights; large updates transfer worse."
        yield Finding("large_update", text, "doubt")


def _check_activations(
    measured: Mapping[str, float], thresholds: Thresholds, *, trains: bool
) -> Iterator[Finding]:
    """Similarity of both bases on the same text. It never blocks training, which needs no map."""
    gravest: Weight = "doubt" if trains else "blocking"
    if (coverage := measured.get("cka_coverage")) is not None:
        text = (
            f"{coverage:.0%} of the target's layers have a source layer with similar activations on the "
            f"same text (debiased CKA above {thresholds.similar:g})."
        )
        weight: Weight = (
            gravest
            if coverage < thresholds.coverage_uncertain
            else "doubt"
            if coverage < thresholds.coverage_compatible
            else "info"
        )
        yield Finding("layer_coverage", text, weight)
    # Uncentred, both R² are 0.8 or more even between families whose adapters do not transfer at all.
    if "read_r2_centred" not in measured or "write_r2_centred" not in measured:
        return
    input_r2, output_r2 = measured["read_r2_centred"], measured["write_r2_centred"]
    text = (
        f"On held-out text, the target's activations explain {max(input_r2, 0.0):.0%} of the variance in "
        f"what this adapter reads, and the source's explain {max(output_r2, 0.0):.0%} of the variance in "
        "what it would write on the target."
    )
    lower = min(input_r2, output_r2)
    weight = (
        gravest
        if lower < thresholds.r2_uncertain
        else "doubt"
        if lower < thresholds.r2_compatible
        else "info"
    )
    yield Finding("adapter_on_text", text, weight)


def find_dare_losses(params: DareParams) -> Iterator[Finding]:
    """The cost of DARE, after any method."""
    if params.mode == "magnitude":
        text = (
            "dare.mode=magnitude keeps and rescales only the largest entries, so the update becomes much "
            "larger."
        )
        yield Finding("dare_magnitude", text, "doubt")
    share = (
        "the share of entries that evaluates best"
        if params.p == "sweep"
        else f"{params.p:.0%} of the entries"
    )
    text = f"DARE drops {share}, and truncating the rest to a rank loses part of it."
    yield Finding("dare", text, "doubt")
