"""Builds the report at each stage of a conversion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rebase.conversion.extra_parts import ExtraPartsPlan, TransferredParts
from rebase.conversion.lost_effect import LostEffect
from rebase.conversion.plan import ConversionPlan
from rebase.conversion.transfer import MethodRun, TransferResult, build_finding_row
from rebase.errors import escape_control_characters
from rebase.evidence.activations import Activations
from rebase.evidence.anchor_pool import Anchor
from rebase.evidence.inputs import LoadedInputs
from rebase.evidence.pool_offer import PoolOffer
from rebase.hub.base import is_folder
from rebase.lora.low_rank import Side
from rebase.lora.writer import BuiltAdapter
from rebase.methods.base import Evidence, MethodState
from rebase.methods.findings import Finding
from rebase.methods.params import parse_params
from rebase.methods.registry import get_method, is_trained
from rebase.precheck.precheck import decide_verdict
from rebase.report.schema import (
    AnchorRow,
    CorpusInfo,
    LayerMap,
    PoolSection,
    RepoRevision,
    Report,
    build_caveats,
    get_library_versions,
    get_rebase_version,
    keep_finite,
    summarize_sites,
)
from rebase.report.selection import Selection
from rebase.schemas.conversions import OutputSpec
from rebase.schemas.thresholds import Thresholds
from rebase.training.loop import suggest_more_training


def build_initial_report(
    plan: ConversionPlan, method_run: MethodRun, selection: Selection | None = None
) -> Report:
    """The report after the pre-check: repos, verdict and evidence, and how the method was selected."""
    inputs, outcome, evidence = method_run.inputs, method_run.precheck_outcome, method_run.evidence
    pinned = inputs.pinned
    pool, pool_warnings = build_pool_report(outcome.method_state, evidence.offer, inputs)
    return Report(
        rebase_version=get_rebase_version(),
        libraries=get_library_versions(),
        adapter=RepoRevision.from_pinned(pinned.adapter),
        source=RepoRevision.from_pinned(pinned.source),
        target=RepoRevision.from_pinned(pinned.target),
        method_requested=plan.method.model_dump(mode="json"),
        method_used=outcome.params.model_dump(mode="json"),
        precheck=outcome.precheck,
        selection=selection,
        pool=pool,
        layer_map=_build_layer_map(evidence.activations, plan.thresholds),
        dropped_sites=[str(site) for site in inputs.pairing.dropped],
        unused_source_layers=list(inputs.pairing.unused_source_layers),
        warnings=[
            escape_control_characters(warning)
            for warning in (
                *pinned.warnings,
                *inputs.adapter.warnings,
                *pool_warnings,
                *_warn_not_compared(plan),
            )
        ],
    )


def add_losses(
    report: Report, parts: ExtraPartsPlan, lost: LostEffect | None, findings: tuple[Finding, ...]
) -> Report:
    """The report with what is left behind, and with a verdict that takes it into account."""
    reasons = [*report.precheck.reasons, *map(build_finding_row, findings)]
    measured = report.precheck.measurements | (lost.to_measurements() if lost is not None else {})
    precheck = report.precheck.model_copy(
        update={
            "verdict": decide_verdict(reasons),
            "reasons": reasons,
            "measurements": keep_finite(measured),
        }
    )
    warnings = [*parts.warnings, *(part.describe() for part in parts.left_behind)]
    return report.model_copy(
        update={
            "precheck": precheck,
            "not_carried": [part.module for part in parts.left_behind if not part.is_partial],
            "warnings": [*report.warnings, *map(escape_control_characters, warnings)],
        }
    )


def add_transferred_parts(report: Report, transferred: TransferredParts) -> Report:
    """The report with the measurements and warnings about the parts besides the sites."""
    return report.model_copy(
        update={
            "summary": report.summary | transferred.summary,
            "warnings": [*report.warnings, *map(escape_control_characters, transferred.warnings)],
        }
    )


def _warn_not_compared(plan: ConversionPlan) -> list[str]:
    """Warn if `auto` has an evaluation without examples to choose by."""
    if not plan.method.chooses_method or plan.evaluation is None or plan.has_examples:
        return []
    return ["Comparing methods requires examples and 'evaluate' has none, so rules chose the method."]


def _build_layer_map(activations: Activations | None, thresholds: Thresholds) -> LayerMap | None:
    """Layer similarity, if both bases read a text."""
    if activations is None:
        return None
    similarity, text, corpus = activations.similarity, activations.text, activations.corpus
    return LayerMap(
        similarity=similarity.matrix.tolist(),
        layers=list(similarity.layers),
        coverage=similarity.compute_coverage(thresholds.similar),
        threshold=thresholds.similar,
        positions=similarity.num_positions,
        coverage_source=text.source_coverage,
        coverage_target=text.target_coverage,
        biased=list(similarity.biased),
        corpus=CorpusInfo(name=corpus.name, digest=corpus.digest, documents=len(corpus.documents)),
    )


def add_site_results(
    report: Report, result: TransferResult, built: BuiltAdapter, output: OutputSpec
) -> Report:
    """The report with a row per updated site, their summary, and caveats."""
    written_measurements = {str(site): keep_finite(measured) for site, measured in built.measurements.items()}
    site_rows = [
        row.model_copy(
            update={"measurements": {**row.measurements, **written_measurements.get(row.target, {})}}
        )
        for row in result.rows
    ]
    flags = {flag for row in site_rows for flag in row.flags}
    return report.model_copy(
        update={
            "sites": site_rows,
            "summary": summarize_sites(site_rows)
            | (keep_finite(result.training.measurements) if result.training else {}),
            "cast_heads_trained_on": result.training.maps_trained_on if result.training else None,
            "training_curve": [keep_finite(dict(point)) for point in result.training.curve]
            if result.training
            else [],
            "output": {
                "rank": built.rank,
                "dtype": output.dtype,
                "max_rank": output.max_rank,
            },
            "caveats": [
                *build_selection_caveats(report.selection),
                *build_caveats(
                    report.precheck,
                    dropped=0 if is_trained(parse_params(report.method_used)) else len(report.dropped_sites),
                    not_carried=len(report.not_carried),
                    flags=flags,
                    used_corpus=report.layer_map is not None,
                ),
                *_build_advice(result, report.method_used),
            ],
        }
    )


def _build_advice(result: TransferResult, method: Mapping[str, Any]) -> list[str]:
    """Advice from the last training curve; `method`: the parameters that were used."""
    if result.training is None:
        return []
    prefix = "refine." if method.get("refine") else ""
    reads_corpus = Evidence.MAPS in get_method(method["name"]).needs(parse_params(dict(method)))
    more_text = "another 'corpus'" if reads_corpus and not prefix else f"{prefix}tokens"
    sentence = suggest_more_training(result.training.curve, more_text, f"{prefix}steps")
    return [sentence] if sentence else []


def build_selection_caveats(selection: Selection | None) -> list[str]:
    """Caveats about metrics on examples that were also used to select the method."""
    if selection is None:
        return []
    if selection.shared:
        lines = [
            f"There were too few examples to split: the same {selection.choosing} example(s) selected the "
            "method and evaluate it, so its scores are optimistic."
        ]
    else:
        lines = [
            f"{selection.choosing} of the examples were also used to select the method, so scores over all "
            "examples are slightly optimistic; 'selection' has the scores on the other "
            f"{selection.confirming}."
        ]
    if selection.ending != "better":
        lines.insert(0, "On the examples, it does not score better than the target alone.")
    return lines


_MAX_LISTED = 5
_COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")


def build_pool_report(
    method_state: Any, offer: PoolOffer | None, inputs: LoadedInputs
) -> tuple[PoolSection | None, tuple[str, ...]]:
    """The report's pool section and warnings about the pool; (None, ()) if the pool was not used."""
    if offer is None or not isinstance(method_state, MethodState) or not method_state.anchor_weights:
        return None, ()
    rows = [
        AnchorRow(
            source=_make_repo_revision(anchor, "source"),
            target=_make_repo_revision(anchor, "target"),
            domain=anchor.domain,
            weight=anchor_weight.weight,
            leverage=anchor_weight.leverage,
            loo_error=anchor_weight.loo_error,
        )
        for anchor, anchor_weight in zip(offer.open().anchors, method_state.anchor_weights, strict=True)
    ]
    curve = [dict(row) for row in method_state.curve]
    return PoolSection(id=offer.pool.id, anchors=rows, curve=curve), (
        *_warn_left_out(offer),
        *_warn_other_commits(offer, inputs),
        *_warn_if_member(offer, inputs),
    )


def _make_repo_revision(anchor: Anchor, side: Side) -> RepoRevision:
    return RepoRevision.from_pinned(anchor.repos[side])


def _warn_left_out(offer: PoolOffer) -> list[str]:
    """Warn about target modules that the adapter covers but some anchor does not."""
    dropped = [str(p.target) for p in offer.inputs.pairing.pairs if p not in set(offer.open().pairs)]
    remainder = f" and {len(dropped) - _MAX_LISTED} more" if len(dropped) > _MAX_LISTED else ""
    listed = f"{', '.join(dropped[:_MAX_LISTED])}{remainder}"
    return (
        [f"{len(dropped)} module(s) get no update because not every anchor adapts them: {listed}."]
        if dropped
        else []
    )


def _warn_other_commits(offer: PoolOffer, inputs: LoadedInputs) -> list[str]:
    """Warn about bases that have changed since the pool was registered."""
    spec, pinned = offer.pool.spec, inputs.pinned
    return [
        f"The pool was registered with {repo.repo_id} at {ref.revision}; this job uses {repo.sha}."
        for ref, repo in ((spec.source, pinned.source), (spec.target, pinned.target))
        if _COMMIT_PATTERN.fullmatch(ref.revision)
        and not is_folder(repo.repo_id)
        and ref.revision != repo.sha
    ]


def _warn_if_member(offer: PoolOffer, inputs: LoadedInputs) -> list[str]:
    """Warn if the adapter is itself an anchor of the pool."""
    adapter = inputs.pinned.adapter
    return [
        "The adapter is itself an anchor of the pool; its counterpart on the target is "
        f"{anchor.repos['target']}."
        for anchor in offer.open().anchors
        if (anchor.repos["source"].repo_id, anchor.repos["source"].identity)
        == (adapter.repo_id, adapter.identity)
    ]
