"""Runs the pre-check: measures, resolves `auto`, probes the method and gives a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from rebase.errors import IncompatiblePair
from rebase.lora.source_adapter import SourceAdapter
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
    """`params`: those of the checked method; for `auto`, of the chosen one. `prepared`: the result of
    its `prepare`; `pairing`: the sites that it can transfer, and those that are left out."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    measurements: dict[str, float]
    params: MethodParams
    method_state: Any
    pairing: Pairing

    @property
    def method(self) -> str:
        """Name of the checked method."""
        return self.params.name


class Weighted(Protocol):
    """A finding, or its row in a report."""

    @property
    def weight(self) -> str:
        """`info`, `doubt` or `blocking`."""


def decide_verdict(findings: Iterable[Weighted]) -> Verdict:
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


class AnchorPoolOffer(Protocol):
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
    shared_tokens: SharedTokens | None,
    params: MethodParams,
    *,
    probes: measure.Probes,
    device: torch.device = _CPU,
    pool_offer: AnchorPoolOffer | None = None,
    text_measurements: Mapping[str, float] | None = None,
    thresholds: Thresholds = _THRESHOLDS,
    pair_sites: Callable[[MethodParams], Pairing] | None = None,
) -> PrecheckResult:
    """Predict whether the adapter will transfer with this method; `auto` is first resolved on the same
    measurements.

    `pairing` is that of `params`; `paired` returns that of the method chosen by `auto` (None: the same).
    `probes` returns a site pair's evidence and is only called for a few layers, when a measurement needs it.
    `text`: measurements of both bases on the same text, if they were run on one; sites then have activations.
    If the method refuses the pair, the verdict is `incompatible` with its message, before expensive work.
    """
    run = _PrecheckRun((source.config, target.config), adapter, pool_offer, probes, device)
    measured = measure.measure_structure(adapter, pairing, shared_tokens)
    if pool_offer is not None:
        measured["pool_anchors"] = float(pool_offer.count)
    if text_measurements is not None:
        measured |= text_measurements
    chosen: MethodParams = params
    reasons: tuple[Finding, ...] = ()
    prepared = run.prepare_method(params, pairing)
    if not prepared.refusals:
        measured |= measure.measure_weights(adapter, measure.select_probe_pairs(pairing.pairs), probes)
    if params.chooses_method:
        if text_measurements is not None:
            measured |= measure.measure_activations(
                adapter, measure.select_probe_pairs(pairing.pairs), probes, device
            )
        chosen, reasons, prepared = _choose_method(
            params, measured, run, pair_sites or (lambda _: pairing), thresholds
        )
        measured |= measure.measure_structure(adapter, prepared.pairing, shared_tokens)
    if not prepared.refusals:
        measured |= run.probe_method(chosen, prepared, measured, on_text=text_measurements is not None)
    if isinstance(prepared.state, MethodState):
        measured |= prepared.state.measurements
        measured["sites"] = float(len(prepared.pairs))
        measured["sites_covered"] *= len(prepared.pairs) / len(prepared.pairing.pairs)
    findings = (
        *_compare_architectures(source, target),
        *reasons,
        *prepared.refusals,
        *list_findings(chosen, measured, thresholds),
    )
    remaining = restrict_pairing(prepared.pairing, prepared.pairs)
    return PrecheckResult(decide_verdict(findings), findings, measured, chosen, prepared.state, remaining)


@dataclass(frozen=True, slots=True)
class _PreparedMethod:
    """A method's prepared state and the site pairs it covers, or why it refused."""

    pairing: Pairing
    pairs: tuple[SitePair, ...]
    state: Any = None
    refusals: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _PrecheckRun:
    """The inputs of a pre-check that do not depend on the method."""

    bases: tuple[Mapping[str, Any], Mapping[str, Any]]
    adapter: SourceAdapter
    pool_offer: AnchorPoolOffer | None
    probes: measure.Probes
    device: torch.device

    def prepare_method(self, params: MethodParams, pairing: Pairing) -> _PreparedMethod:
        """Prepare the method, or record why it refused. `auto` itself prepares nothing."""
        if params.chooses_method:
            return _PreparedMethod(pairing, pairing.pairs)
        method = get_method(params.name)
        try:
            uses_pool = Evidence.ANCHORS in method.needs(params)
            anchor_pool = self.pool_offer.open() if uses_pool and self.pool_offer is not None else None
            pairs = anchor_pool.pairs if anchor_pool is not None else pairing.pairs
            return _PreparedMethod(
                pairing, pairs, method.prepare(params, BasePairInfo(*self.bases, pairs, anchor_pool))
            )
        except IncompatiblePair as exc:
            message = f"{exc.message} {exc.hint}" if exc.hint else exc.message
            finding = Finding("refused_by_method", message, "blocking")
            return _PreparedMethod(pairing, pairing.pairs, refusals=(finding,))

    def probe_method(
        self, params: MethodParams, prepared: _PreparedMethod, measured: Mapping[str, float], *, on_text: bool
    ) -> dict[str, float]:
        """What the method measures on the real update at the probe sites, and the adapter on the text."""
        measurements: dict[str, float] = {}
        if get_method(params.name).can_probe(params, measured):
            probe_sites = measure.select_probe_pairs(prepared.pairs)
            method = get_method(params.name)
            measurements |= measure.measure_probes(
                method, params, prepared.state, self.adapter, probe_sites, self.probes, self.device
            )
        if on_text and "read_r2_centred" not in {*measured, *measurements}:
            probe_sites = measure.select_probe_pairs(prepared.pairing.pairs)
            measurements |= measure.measure_activations(self.adapter, probe_sites, self.probes, self.device)
        return measurements


def _choose_method(
    params: MethodParams,
    measured: Mapping[str, float],
    run: _PrecheckRun,
    pair_sites: Callable[[MethodParams], Pairing],
    thresholds: Thresholds,
) -> tuple[MethodParams, tuple[Finding, ...], _PreparedMethod]:
    """Resolve `auto`; if a pool turns out to be unusable, choose without it and add a finding."""
    chosen, reasons = choose(params, measured, thresholds)
    prepared = run.prepare_method(chosen, pair_sites(chosen))
    if chosen.uses_pool and (reason := _find_pool_problem(chosen, prepared)) is not None:
        unusable = Finding("pool_unusable", reason, "doubt")
        chosen, reasons = choose(params, measured, thresholds, without_pool=True)
        return chosen, (unusable, *reasons), run.prepare_method(chosen, pair_sites(chosen))
    return chosen, reasons, prepared


def _find_pool_problem(params: MethodParams, prepared: _PreparedMethod) -> str | None:
    """Why `auto` cannot use the pool: it cannot be read, or does not predict its own anchors."""
    if prepared.refusals:
        return prepared.refusals[0].message
    return get_method(params.name).unusable_reason(prepared.state)


def _compare_architectures(source: ModelWeights, target: ModelWeights) -> tuple[Finding, ...]:
    source_arch, target_arch = source.architecture, target.architecture
    if (source_arch.model_type, source_arch.hidden, source_arch.layers) == (
        target_arch.model_type,
        target_arch.hidden,
        target_arch.layers,
    ):
        return ()
    text = (
        f"From {source_arch.model_type} ({source_arch.layers} layers, width {source_arch.hidden}) "
        f"to {target_arch.model_type} ({target_arch.layers} layers, width {target_arch.hidden})."
    )
    return (Finding("other_architecture", text, "info"),)
