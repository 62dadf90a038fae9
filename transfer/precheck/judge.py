"""The pre-check from beginning to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from transfer.adapter.read import SourceAdapter
from transfer.catalogue import (
    AnchorRidgeParams,
    AutoParams,
    CrossLoraParams,
    MethodParams,
    Thresholds,
)
from transfer.errors import IncompatiblePair
from transfer.interface import Anchors, Evidence, Pair, Prepared, SitePair
from transfer.pairing import Pairing
from transfer.precheck import measure
from transfer.precheck.choose import choose
from transfer.precheck.result import PrecheckResult, Reason, verdict_of
from transfer.precheck.rules import FEWEST_ANCHORS, LEAST_POOL_ERROR, reasons
from transfer.registry import get_method
from transfer.vocabulary import SharedTokens
from transfer.weights import ModelWeights

# What the evidence of a probe site must be able to give.
PROBE_NEEDS = frozenset(
    {Evidence.WEIGHTS, Evidence.FACTORS, Evidence.EMBEDDINGS, Evidence.ANCHORS, Evidence.ACTIVATIONS}
)

_CPU = torch.device("cpu")
_THRESHOLDS = Thresholds()


class Offer(Protocol):
    """A pool of anchors that may be used; opening it reads every anchor's headers."""

    @property
    def count(self) -> int:
        """How many anchors."""

    def open(self) -> Anchors:
        """The same pool on every call. Raises IncompatiblePair when it cannot be used."""


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
    offer: Offer | None = None,
    text: Mapping[str, float] | None = None,
    thresholds: Thresholds = _THRESHOLDS,
) -> PrecheckResult:
    """Judge this move with this method; `auto` is resolved first, on the same measurements.

    `probes` gives a site pair's evidence and is called for a few layers only, when a measurement needs it.
    `text`: what both bases made of one text, where they read one; their sites then have activations.
    A method that refuses the pair ends in `incompatible` with its own sentence, before anything expensive.
    """
    bases = (source.config, target.config)
    measured = measure.static(adapter, pairing, vocabularies)
    if offer is not None:
        measured["pool_anchors"] = float(offer.count)
    if text is not None:
        measured |= text
    chosen: MethodParams = params
    why: tuple[Reason, ...] = ()
    ready = _ready(params, bases, pairing, offer)
    if not ready.refused:
        measured |= measure.weights(adapter, measure.probe_pairs(pairing.pairs), probes)
    if isinstance(params, AutoParams):
        chosen, why, ready = _chosen(params, measured, bases, pairing, offer)
    if not ready.refused and _can_probe(chosen, measured):
        method, places = get_method(chosen.name), measure.probe_pairs(ready.pairs)
        measured |= measure.carried(method, chosen, ready.state, adapter, places, probes, device)
    if not ready.refused and text is not None and "read_r2" not in measured:
        measured |= measure.on_text(adapter, measure.probe_pairs(pairing.pairs), probes, device)
    if isinstance(ready.state, Prepared):
        measured |= ready.state.measurements
        measured["sites"] = float(len(ready.pairs))
        measured["sites_covered"] *= len(ready.pairs) / len(pairing.pairs)
    found = (*_architectures(source, target), *why, *ready.refused, *reasons(chosen, measured, thresholds))
    return PrecheckResult(verdict_of(found), found, measured, chosen, ready.state, ready.pairs)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a method prepared for which site pairs, or why it refused."""

    state: Any
    pairs: tuple[SitePair, ...]
    refused: tuple[Reason, ...] = ()


def _ready(
    params: MethodParams,
    bases: tuple[Mapping[str, Any], Mapping[str, Any]],
    pairing: Pairing,
    offer: Offer | None,
) -> _Ready:
    """`auto` prepares nothing: it chooses among methods that do not refuse."""
    if isinstance(params, AutoParams):
        return _Ready(None, pairing.pairs)
    method = get_method(params.name)
    try:
        pooled = Evidence.ANCHORS in method.needs(params)
        anchors = offer.open() if pooled and offer is not None else None
        pairs = anchors.pairs if anchors is not None else pairing.pairs
        return _Ready(method.prepare(params, Pair(*bases, pairs, anchors)), pairs)
    except IncompatiblePair as refusal:
        message = f"{refusal.message} {refusal.hint}" if refusal.hint else refusal.message
        return _Ready(None, pairing.pairs, (Reason("refused_by_method", message, "blocking"),))


def _chosen(
    params: AutoParams,
    measured: dict[str, float],
    bases: tuple[Mapping[str, Any], Mapping[str, Any]],
    pairing: Pairing,
    offer: Offer | None,
) -> tuple[MethodParams, tuple[Reason, ...], _Ready]:
    """What `auto` chooses; a pool that turns out to be unusable is left aside, and that is said."""
    chosen, why = choose(params, measured)
    ready = _ready(chosen, bases, pairing, offer)
    if isinstance(chosen, AnchorRidgeParams) and (trouble := _pool_trouble(ready)) is not None:
        unusable = Reason("pool_unusable", trouble, "doubt")
        chosen, why = choose(params, {k: v for k, v in measured.items() if k != "pool_anchors"})
        return chosen, (unusable, *why), _ready(chosen, bases, pairing, offer)
    return chosen, why, ready


def _pool_trouble(ready: _Ready) -> str | None:
    """Why a pool is no choice for `auto`: it cannot be read, or cannot even predict itself."""
    if ready.refused:
        return ready.refused[0].message
    error = ready.state.measurements["loo_error"]
    if error < LEAST_POOL_ERROR:
        return None
    return f"An anchor pool was left aside: it misses its own tasks by {error:.0%} of their norm."


def _can_probe(params: MethodParams, measured: dict[str, float]) -> bool:
    """Anchored alignment cannot be tried without anchors; the rules then say so. Nothing is trained."""
    if get_method(params.name).needs(params) & {Evidence.TRAINED, Evidence.HEADS}:
        return False  # training is no pre-check
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
