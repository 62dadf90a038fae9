"""The pre-check from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from rebase.errors import IncompatiblePair
from rebase.lora.reader import SourceAdapter
from rebase.methods.auto.rules import choose
from rebase.methods.base import AnchorPool, BasePairInfo, Evidence, MethodState, SitePair
from rebase.methods.base_params import MethodParams
from rebase.methods.findings import Finding
from rebase.methods.registry import get_method
from rebase.methods.site_pairing import Pairing, restrict_pairing
from rebase.models.vocabulary import SharedTokens
from rebase.models.weights import ModelWeights
from rebase.precheck import measurements as measure
from rebase.precheck.rules import list_findings
from rebase.schemas.thresholds import Thresholds

Verdict = Literal["compatible", "uncertain", "incompatible"]


@dataclass(frozen=True, slots=True)
class PrecheckResult:
    """`params`: of the method that was judged; for `auto`, of the method that it chose. `prepared`: what that
    method prepared; `pairing`: the sites that it can carry, and those that are left out."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    measurements: dict[str, float]
    params: MethodParams
    prepared: Any
    pairing: Pairing

    @property
    def method(self) -> str:
        """Name of the method that the verdict is about."""
        return self.params.name


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The gravest finding decides."""
    weights = {finding.weight for finding in findings}
    if "blocking" in weights:
        return "incompatible"
    return "uncertain" if "doubt" in weights else "compatible"


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

    def open(self) -> AnchorPool:
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
    paired: Callable[[MethodParams], Pairing] | None = None,
) -> PrecheckResult:
    """Judge this move with this method; `auto` is resolved first, on the same measurements.

    `pairing` is that of `params`, `paired` gives that of the method which `auto` chooses (None: the same).

    `probes` gives a site pair's evidence and is called for a few layers only, when a measurement needs it.
    `text`: what both bases made of one text, where they read one; their sites then have activations.
    A method that refuses the pair ends in `incompatible` with its own sentence, before anything expensive.
    """
    move = _Move((source.config, target.config), adapter, offer, probes, device)
    measured = measure.static(adapter, pairing, vocabularies)
    if offer is not None:
        measured["pool_anchors"] = float(offer.count)
    if text is not None:
        measured |= text
    chosen: MethodParams = params
    why: tuple[Finding, ...] = ()
    ready = move.ready(params, pairing)
    if not ready.refused:
        measured |= measure.weights(adapter, measure.probe_pairs(pairing.pairs), probes)
    if params.chooses_method:
        if text is not None:
            measured |= measure.on_text(adapter, measure.probe_pairs(pairing.pairs), probes, device)
        chosen, why, ready = _chosen(params, measured, move, paired or (lambda _: pairing), thresholds)
        measured |= measure.static(adapter, ready.pairing, vocabularies)
    if not ready.refused:
        measured |= move.tried(chosen, ready, measured, on_text=text is not None)
    if isinstance(ready.state, MethodState):
        measured |= ready.state.measurements
        measured["sites"] = float(len(ready.pairs))
        measured["sites_covered"] *= len(ready.pairs) / len(ready.pairing.pairs)
    found = (
        *_architectures(source, target),
        *why,
        *ready.refused,
        *list_findings(chosen, measured, thresholds),
    )
    left = restrict_pairing(ready.pairing, ready.pairs)
    return PrecheckResult(verdict_of(found), found, measured, chosen, ready.state, left)


@dataclass(frozen=True, slots=True)
class _Ready:
    """What a method prepared for which of the paired sites, or why it refused."""

    pairing: Pairing
    pairs: tuple[SitePair, ...]
    state: Any = None
    refused: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Move:
    """What stays the same whichever method is looked at."""

    bases: tuple[Mapping[str, Any], Mapping[str, Any]]
    adapter: SourceAdapter
    offer: Offer | None
    probes: measure.Probes
    device: torch.device

    def ready(self, params: MethodParams, pairing: Pairing) -> _Ready:
        """`auto` prepares nothing: it chooses among methods that do not refuse."""
        if params.chooses_method:
            return _Ready(pairing, pairing.pairs)
        method = get_method(params.name)
        try:
            pooled = Evidence.ANCHORS in method.needs(params)
            anchors = self.offer.open() if pooled and self.offer is not None else None
            pairs = anchors.pairs if anchors is not None else pairing.pairs
            return _Ready(pairing, pairs, method.prepare(params, BasePairInfo(*self.bases, pairs, anchors)))
        except IncompatiblePair as refusal:
            message = f"{refusal.message} {refusal.hint}" if refusal.hint else refusal.message
            why = Finding("refused_by_method", message, "blocking")
            return _Ready(pairing, pairing.pairs, refused=(why,))

    def tried(
        self, params: MethodParams, ready: _Ready, measured: Mapping[str, float], *, on_text: bool
    ) -> dict[str, float]:
        """The method on the real update at the probe sites, and what the adapter sees of a text there."""
        found: dict[str, float] = {}
        if get_method(params.name).can_probe(params, measured):
            places = measure.probe_pairs(ready.pairs)
            method = get_method(params.name)
            found |= measure.carried(
                method, params, ready.state, self.adapter, places, self.probes, self.device
            )
        if on_text and "read_r2_centred" not in {*measured, *found}:
            places = measure.probe_pairs(ready.pairing.pairs)
            found |= measure.on_text(self.adapter, places, self.probes, self.device)
        return found


def _chosen(
    params: MethodParams,
    measured: Mapping[str, float],
    move: _Move,
    paired: Callable[[MethodParams], Pairing],
    thresholds: Thresholds,
) -> tuple[MethodParams, tuple[Finding, ...], _Ready]:
    """What `auto` chooses; a pool that turns out to be unusable is left aside, and that is said."""
    chosen, why = choose(params, measured, thresholds)
    ready = move.ready(chosen, paired(chosen))
    if chosen.uses_pool and (reason := _find_pool_problem(chosen, ready)) is not None:
        unusable = Finding("pool_unusable", reason, "doubt")
        chosen, why = choose(params, measured, thresholds, without_pool=True)
        return chosen, (unusable, *why), move.ready(chosen, paired(chosen))
    return chosen, why, ready


def _find_pool_problem(params: MethodParams, ready: _Ready) -> str | None:
    """Why a pool is no choice for `auto`: it cannot be read, or cannot even predict itself."""
    if ready.refused:
        return ready.refused[0].message
    return get_method(params.name).unusable_reason(ready.state)


def _architectures(source: ModelWeights, target: ModelWeights) -> tuple[Finding, ...]:
    ours, theirs = source.architecture, target.architecture
    if (ours.model_type, ours.hidden, ours.layers) == (theirs.model_type, theirs.hidden, theirs.layers):
        return ()
    text = (
        f"From {ours.model_type} ({ours.layers} layers, width {ours.hidden}) "
        f"to {theirs.model_type} ({theirs.layers} layers, width {theirs.hidden})."
    )
    return (Finding("other_architecture", text, "info"),)
