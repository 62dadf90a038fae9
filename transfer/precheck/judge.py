"""The pre-check from beginning to end."""

from __future__ import annotations

import torch

from transfer.adapter.read import SourceAdapter
from transfer.catalogue import AutoParams, CrossLoraParams, MethodParams
from transfer.errors import IncompatiblePair
from transfer.interface import Evidence, Pair
from transfer.pairing import Pairing
from transfer.precheck import measure
from transfer.precheck.choose import choose
from transfer.precheck.result import PrecheckResult, Reason, verdict_of
from transfer.precheck.rules import FEWEST_ANCHORS, reasons
from transfer.registry import get_method
from transfer.vocabulary import SharedTokens
from transfer.weights import ModelWeights

# What the evidence of a probe site must be able to give.
PROBE_NEEDS = frozenset({Evidence.WEIGHTS, Evidence.FACTORS, Evidence.EMBEDDINGS})

_CPU = torch.device("cpu")


def precheck(
    source: ModelWeights,
    target: ModelWeights,
    adapter: SourceAdapter,
    pairing: Pairing,
    vocabularies: SharedTokens | None,
    params: MethodParams,
    *,
    probes: measure.Probes,
    device: torch.device = _CPU,
) -> PrecheckResult:
    """Judge this move with this method; `auto` is resolved first, on the same measurements.

    `probes` gives a site pair's evidence and is called for a few layers only, when a measurement needs it.
    A method that refuses the pair ends in `incompatible` with its own sentence, before anything expensive.
    """
    pairs = measure.probe_pairs(pairing)
    pair = Pair(source.config, target.config, pairing.pairs)
    measured = measure.static(adapter, pairing, vocabularies)
    refused = _refusal(params, pair)
    if not refused:
        measured |= measure.weights(adapter, pairs, probes)
    chosen, why = choose(params, measured)
    if not refused and _can_probe(chosen, measured):
        measured |= measure.carried(get_method(chosen.name), chosen, adapter, pairs, probes, device)
    found = (*_architectures(source, target), *why, *refused, *reasons(chosen, measured))
    return PrecheckResult(verdict_of(found), found, measured, chosen)


def _refusal(params: MethodParams, pair: Pair) -> tuple[Reason, ...]:
    """The method's own refusal, if any. `auto` chooses among methods that do not refuse."""
    if isinstance(params, AutoParams):
        return ()
    try:
        get_method(params.name).prepare(params, pair)
    except IncompatiblePair as refusal:
        message = f"{refusal.message} {refusal.hint}" if refusal.hint else refusal.message
        return (Reason("refused_by_method", message, "blocking"),)
    return ()


def _can_probe(params: MethodParams, measured: dict[str, float]) -> bool:
    """Anchored alignment cannot be tried without anchors; the rules then say so."""
    anchored = isinstance(params, CrossLoraParams) and params.alignment == "anchored"
    return not anchored or measured.get("shared_tokens", 0.0) >= FEWEST_ANCHORS


def _architectures(source: ModelWeights, target: ModelWeights) -> tuple[Reason, ...]:
    ours, theirs = source.architecture, target.architecture
    if (ours.model_type, ours.hidden, ours.layers) == (theirs.model_type, theirs.hidden, theirs.layers):
        return ()
    text = (
        f"From {ours.model_type} ({ours.layers} layers, width {ours.hidden}) "
        f"to {theirs.model_type} ({theirs.layers} layers, width {theirs.hidden})."
    )
    return (Reason("other_architecture", text, "info"),)
