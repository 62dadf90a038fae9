"""Runs the pre-check: measures, resolves `auto`, probes the method and gives a verdict."""

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
    """`params`: those of the checked method; for `auto`, those of the chosen method. `prepared`: the result
    of its `prepare`; `pairing`: the sites that it can transfer, and those that are left out."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    measurements: dict[str, float]
    params: MethodParams
    prepared: Any
    pairing: Pairing

    @property
    def method(self) -> str:
        """Name of the checked method."""
        return self.params.name


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The most severe finding decides."""
    weights = {finding.weight for finding in findings}
    if "blocking" in weights:
        return "incompatible"
    return "uncertain" if "doubt" in weights else "compatible"


# Evidence that must be available at probe sites.
PROBE_NEEDS = frozenset(
    {Evidence.WEIGHTS, Evidence.FACTORS, Evidence.EMBEDDINGS, Evidence.ANCHORS, Evidence.ACTIVATIONS}
)

_CPU = torch.device("cpu")
_THRESHOLDS = Thresholds()


class Offer(Protocol):
    """An anchor pool that may be used; opening it reads every anchor's headers."""

    @property
    def count(self) -> int:
        """Number of anchors."""

    def open(self) -> AnchorPool:
        """Open the pool; every call returns the same one. Raises IncompatiblePair if it cannot be used."""


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
    """Predict whether the adapter will transfer with this method; `auto` is first resolved on the same
    measurements.

    `pairing` is that of `params`; `paired` returns that of the method chosen by `auto` (None: the same).
    `probes` returns a site pair's evidence and is only called for a few layers, when a measurement needs it.
    `text`: measurements of both bases on the same text, if they were run on one; sites then have activations.
    If the method refuses the pair, the verdict is `incompatible` with its message, before expensive work.
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
    """A method's prepared state and the site pairs it covers, or why it refused."""

    pairing: Pairing
    pairs: tuple[SitePair, ...]
    state: Any = None
    refused: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Move:
    """The inputs of a pre-check that do not depend on the method."""

    bases: tuple[Mapping[str, Any], Mapping[str, Any]]
    adapter: SourceAdapter
    offer: Offer | None
    probes: measure.Probes
    device: torch.device

    def ready(self, params: MethodParams, pairing: Pairing) -> _Ready:
        """Prepare the method, or record why it refused. `auto` itself prepares nothing."""
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
        """Measure the method on the real update at the probe sites, and the adapter on the text."""
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
    """Resolve `auto`; if a pool turns out to be unusable, choose without it and add a finding."""
    chosen, why = choose(params, measured, thresholds)
    ready = move.ready(chosen, paired(chosen))
    if chosen.uses_pool and (reason := _find_pool_problem(chosen, ready)) is not None:
        unusable = Finding("pool_unusable", reason, "doubt")
        chosen, why = choose(params, measured, thresholds, without_pool=True)
        return chosen, (unusable, *why), move.ready(chosen, paired(chosen))
    return chosen, why, ready


def _find_pool_problem(params: MethodParams, ready: _Ready) -> str | None:
    """Why `auto` cannot use the pool: it cannot be read, or does not predict its own anchors."""
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
