"""One method, from loaded inputs to updates of the target: evidence → verdict → one site after another.

`prepare_method` and `run_method` are all of a conversion that depends on the method, so that comparing
several methods means calling them several times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from rebase.conversion.collect_activations import prepare_activations
from rebase.conversion.plan import ConversionPlan
from rebase.errors import IncompatiblePair
from rebase.evidence.activations import Activations
from rebase.evidence.inputs import LoadedInputs, build_shared_token_rows
from rebase.evidence.pool_offer import PoolOffer, offer_pool
from rebase.evidence.site_evidence import EvidenceProvider
from rebase.lora.fold_layers import fold_layers
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base import BasePairInfo, Evidence, SitePair, SiteResult
from rebase.methods.base_params import DareParams, MethodParams
from rebase.methods.dare import drop_and_rescale
from rebase.methods.findings import Finding
from rebase.methods.registry import get_method
from rebase.methods.site_pairing import Pairing, pair_sites
from rebase.models.base_pair import BaseModelRef, BasePair
from rebase.precheck.measurements import select_probe_pairs
from rebase.precheck.precheck import PROBE_NEEDS, precheck
from rebase.report.progress import ProgressReporter
from rebase.report.schema import FindingRow, Precheck, SiteRow, keep_finite, merge_site_rows
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import NO_ANCHOR_POOLS, AnchorPools
from rebase.schemas.states import Phase
from rebase.schemas.thresholds import Thresholds
from rebase.training.run import TrainingOutcome, refine, train_if_needed


@dataclass(frozen=True, slots=True)
class PrecheckOutcome:
    """The verdict, the parameters of the method that it is about (`auto` is resolved here), what that method
    prepared, and the sites that it can carry."""

    precheck: Precheck
    params: MethodParams
    method_state: Any
    pairing: Pairing


def run_precheck(
    inputs: LoadedInputs,
    evidence: EvidenceProvider,
    requested: MethodParams,
    thresholds: Thresholds,
    pair_sites_for: Callable[[MethodParams], Pairing],
) -> PrecheckOutcome:
    """The pre-check on this deployment's evidence. `paired`: the sites of the method that `auto` chooses."""
    activations = evidence.activations
    result = precheck(
        inputs.source,
        inputs.target,
        inputs.adapter,
        inputs.pairing,
        inputs.vocabularies,
        requested,
        probes=lambda pair: evidence.for_site(pair, PROBE_NEEDS),
        device=evidence.device,
        pool_offer=evidence.offer,
        text_measurements=activations.compute_measurements(thresholds.similar)
        if activations is not None
        else None,
        thresholds=thresholds,
        pair_sites=pair_sites_for,
    )
    reasons = [build_finding_row(finding) for finding in result.findings]
    document = Precheck(
        verdict=result.verdict, reasons=reasons, measurements=keep_finite(result.measurements)
    )
    return PrecheckOutcome(document, result.params, result.method_state, result.pairing)


def build_finding_row(finding: Finding) -> FindingRow:
    """A finding as the report writes it."""
    return FindingRow(code=finding.code, message=finding.message, weight=finding.weight)


@dataclass(frozen=True, slots=True)
class ConversionContext:
    """What every method of a conversion works with: the adapter and both bases on disk, the bases as running
    models, the runtime, where progress is reported, and the anchor pools that may be used."""

    inputs: LoadedInputs
    models: BasePair
    runtime: Runtime
    progress: ProgressReporter
    pools: AnchorPools = NO_ANCHOR_POOLS


@dataclass(frozen=True, slots=True)
class MethodRun:
    """A method that has been judged. `opened` holds the sites that it can carry."""

    inputs: LoadedInputs
    evidence: EvidenceProvider
    precheck_outcome: PrecheckOutcome


@dataclass(frozen=True, slots=True)
class TransferResult:
    """Updates of the target in float32 on the CPU, a row for each, and what was learnt where one was."""

    deltas: dict[Site, LowRank]
    rows: list[SiteRow]
    training: TrainingOutcome | None


def prepare_method(
    plan: ConversionPlan, context: ConversionContext, offer: PoolOffer | None = None
) -> MethodRun:
    """Gather what the request's method looks at and judge it; `auto` is resolved here.

    `offer`: the pool, where it has been found before.
    """
    inputs, progress = context.inputs, context.progress
    activations = prepare_activations(plan, inputs, context.models, context.runtime, progress)
    pool_inputs = replace(inputs, pairing=pair_all_sites(inputs, activations))
    evidence = EvidenceProvider(
        source=BaseModelRef(inputs.pinned.source, inputs.source),
        target=BaseModelRef(inputs.pinned.target, inputs.target),
        cache=context.runtime.cache,
        device=context.runtime.device,
        embeddings=build_shared_token_rows(inputs, getattr(plan.method, "anchor_tokens", 4096)),
        offer=offer
        or offer_pool(
            plan.method, (plan.source, plan.target), pool_inputs, context.pools, context.runtime, progress
        ),
        activations=activations,
    )
    inputs = replace(inputs, pairing=_pair_and_plan(inputs, plan.method, activations))
    progress.update(Phase.PRECHECKING)
    outcome = run_precheck(
        inputs,
        evidence,
        plan.method,
        plan.thresholds,
        lambda params: _pair_and_plan(inputs, params, activations),
    )
    return MethodRun(replace(inputs, pairing=outcome.pairing), evidence, outcome)


def pair_all_sites(
    inputs: LoadedInputs, activations: Activations | None, *, layer_scale: bool = True, fold: bool = False
) -> Pairing:
    """Sites by similarity of layers where both bases read a text, else by relative depth."""
    return pair_sites(
        inputs.source,
        inputs.target,
        inputs.adapter.sites,
        layer_scale,
        fold=fold,
        layer_maps=activations.layer_maps if activations is not None else None,
    )


def _pair_and_plan(inputs: LoadedInputs, params: MethodParams, activations: Activations | None) -> Pairing:
    """Sites as this method pairs them; the pass over the text knows which ones the pre-check will ask for."""
    fold = params.fold if params.chooses_method else get_method(params.name).folds_layers(params)
    pairing = pair_all_sites(inputs, activations, layer_scale=params.layer_scale, fold=fold)
    if activations is not None:
        activations.plan(select_probe_pairs(pairing.pairs))
    return pairing


def run_method(method_run: MethodRun, context: ConversionContext) -> TransferResult:
    """The update at every site of the target, with what the request wants done to any method's update."""
    return postprocess(transfer_sites(method_run, context), method_run, context)


def postprocess(result: TransferResult, method_run: MethodRun, context: ConversionContext) -> TransferResult:
    """A carried update thinned out and trained on, as the method's parameters say."""
    params = method_run.precheck_outcome.params
    if params.dare is not None:
        result = apply_dare(result, params.dare, method_run.evidence.device)
    if params.refine is not None:
        deltas, refinement = refine(
            method_run.inputs, context.models, result.deltas, params, context.runtime, context.progress
        )
        result = TransferResult(
            deltas, result.rows, refinement if result.training is None else result.training.merge(refinement)
        )
    return result


def transfer_sites(method_run: MethodRun, context: ConversionContext) -> TransferResult:
    """What the method alone carries: every site in turn, so that memory does not grow with depth."""
    params, evidence, progress = method_run.precheck_outcome.params, method_run.evidence, context.progress
    method = get_method(params.name)
    needs = method.needs(params)
    state, pairs = _prepare_state(method_run)
    if Evidence.EMBEDDINGS in needs and evidence.embeddings is None:
        raise IncompatiblePair(
            "The two bases share no tokens (or have no readable tokenizer.json), so they cannot be aligned.",
            hint="Use a method or alignment that needs no shared vocabulary.",
            pointer="/method",
        )
    phase = Phase.FACTORIZING if Evidence.FACTORS in needs else Phase.TRANSFERRING
    evidence, training = train_if_needed(
        method_run.inputs, context.models, evidence, pairs, params, context.runtime, progress
    )
    if evidence.activations is not None:
        evidence.activations.plan(pairs)
    deltas: dict[Site, list[LowRank]] = {}
    rows: list[SiteRow] = []
    for done, pair in enumerate(pairs):
        progress.update(phase, done, len(pairs), "sites")
        delta = method_run.inputs.adapter.delta(pair.source).scaled(pair.scale)
        on_device = LowRank(delta.B.to(evidence.device), delta.A.to(evidence.device))
        result = method.transfer_site(params, state, pair, on_device, evidence.for_site(pair, needs))
        deltas.setdefault(pair.target, []).append(LowRank(result.delta.B.cpu(), result.delta.A.cpu()))
        # What a pool predicts or a training finds is the target layer's own update, which is not shared out.
        scaled = pair.scale != 1.0 and not needs & {Evidence.ANCHORS, Evidence.TRAINED}
        extra = {"layer_scale": pair.scale} if scaled else {}
        read_losses = method_run.inputs.adapter.measurements.get(pair.source, {})
        rows.append(_build_site_row(pair, result, extra | read_losses))
    progress.update(phase, len(pairs), len(pairs), "sites")
    folded, lost = fold_layers(deltas)
    merged_rows = merge_site_rows(rows, {str(site): share for site, share in lost.items()})
    return TransferResult(folded, merged_rows, training)


def apply_dare(transferred: TransferResult, params: DareParams, device: torch.device) -> TransferResult:
    """DARE at every site, at one share. What it measures joins the rows."""
    sites = {str(site): site for site in transferred.deltas}
    deltas, rows = dict(transferred.deltas), []
    for row in transferred.rows:
        site = sites[row.target]
        delta = transferred.deltas[site]
        on_device = LowRank(delta.B.to(device), delta.A.to(device))
        result = drop_and_rescale(
            SiteResult(on_device, dict(row.measurements), tuple(row.flags)), params, site
        )
        deltas[site] = LowRank(result.delta.B.cpu(), result.delta.A.cpu())
        update = {"measurements": keep_finite(result.measurements), "flags": list(result.flags)}
        rows.append(row.model_copy(update=update))
    return TransferResult(deltas, rows, transferred.training)


def _prepare_state(method_run: MethodRun) -> tuple[object, tuple[SitePair, ...]]:
    """The method's state and sites. One that refused in the pre-check says so again, now as an error."""
    params, evidence, inputs = method_run.precheck_outcome.params, method_run.evidence, method_run.inputs
    if method_run.precheck_outcome.method_state is not None:
        return method_run.precheck_outcome.method_state, inputs.pairing.pairs
    method = get_method(params.name)
    offer = evidence.offer if Evidence.ANCHORS in method.needs(params) else None
    anchor_pool = offer.open() if offer is not None else None
    pairs = anchor_pool.pairs if anchor_pool is not None else inputs.pairing.pairs
    state = method.prepare(
        params, BasePairInfo(inputs.source.config, inputs.target.config, pairs, anchor_pool)
    )
    return state, pairs


def _build_site_row(pair: SitePair, result: SiteResult, extra: dict[str, float]) -> SiteRow:
    return SiteRow(
        source=str(pair.source),
        target=str(pair.target),
        measurements=keep_finite({**result.measurements, **extra}),
        flags=list(result.flags),
    )
