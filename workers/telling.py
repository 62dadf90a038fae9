"""What a report says at each stage of a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebase.errors import escape_control_characters
from rebase.methods.base import Evidence
from rebase.methods.params import parse_params
from rebase.methods.registry import get_method, is_trained
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.thresholds import Thresholds
from transfer.adapter.write import BuiltAdapter
from workers.activations.evidence import Activations
from workers.move import Move, Moved
from workers.pool import told_of_pool
from workers.report import (
    LayerMap,
    RepoAt,
    Report,
    TextRead,
    caveats,
    finite,
    library_versions,
    rebase_version,
    summarise,
)
from workers.selection.rows import Selection
from workers.training.advice import advice


def opening(request: ConversionRequest, move: Move, selection: Selection | None = None) -> Report:
    """Who takes part, the verdict and what it rests on; how the method was chosen, if that was measured."""
    opened, judged, evidence = move.opened, move.judged, move.evidence
    pinned = opened.pinned
    pool, of_pool = told_of_pool(judged.prepared, evidence.offer, opened)
    return Report(
        rebase_version=rebase_version(),
        libraries=library_versions(),
        adapter=RepoAt(repo_id=pinned.adapter.repo_id, sha=pinned.adapter.sha),
        source=RepoAt(repo_id=pinned.source.repo_id, sha=pinned.source.sha),
        target=RepoAt(repo_id=pinned.target.repo_id, sha=pinned.target.sha),
        method_requested=request.method.model_dump(mode="json"),
        method_used=judged.params.model_dump(mode="json"),
        precheck=judged.precheck,
        selection=selection,
        pool=pool,
        layer_map=_layer_map(evidence.activations, request.precheck.thresholds),
        dropped_sites=[str(site) for site in opened.pairing.dropped],
        unused_source_layers=list(opened.pairing.unused_source_layers),
        not_carried=list(opened.adapter.not_carried),
        warnings=[
            escape_control_characters(warning)
            for warning in (*pinned.warnings, *opened.adapter.warnings, *of_pool, *_not_compared(request))
        ],
    )


def _not_compared(request: ConversionRequest) -> list[str]:
    """An evaluation that `auto` cannot choose by."""
    if not request.method.chooses_method or request.evaluate is None or request.evaluate.examples:
        return []
    return ["'evaluate' has no examples, which is what methods are compared on, so rules chose the method."]


def _layer_map(activations: Activations | None, thresholds: Thresholds) -> LayerMap | None:
    """Which layers see the same text alike, where both bases read one."""
    if activations is None:
        return None
    found, text, corpus = activations.similarity, activations.text, activations.corpus
    return LayerMap(
        similarity=found.matrix.tolist(),
        layers=list(found.layers),
        coverage=found.covered(thresholds.similar),
        threshold=thresholds.similar,
        positions=found.positions,
        coverage_source=text.source_coverage,
        coverage_target=text.target_coverage,
        biased=list(found.biased),
        corpus=TextRead(name=corpus.name, digest=corpus.digest, documents=len(corpus.documents)),
    )


def with_sites(report: Report, found: Moved, built: BuiltAdapter, request: ConversionRequest) -> Report:
    """The same with a row for each updated site, their summary, and what to know before using it."""
    by_target = {str(site): finite(measured) for site, measured in built.measurements.items()}
    merged = [
        row.model_copy(update={"measurements": {**row.measurements, **by_target.get(row.target, {})}})
        for row in found.rows
    ]
    flags = {flag for row in merged for flag in row.flags}
    return report.model_copy(
        update={
            "sites": merged,
            "summary": summarise(merged) | (finite(found.learnt.measurements) if found.learnt else {}),
            "cast_heads_trained_on": found.learnt.heads_of if found.learnt else None,
            "training_curve": [finite(dict(point)) for point in found.learnt.curve] if found.learnt else [],
            "output": {
                "rank": built.rank,
                "dtype": request.output.dtype,
                "max_rank": request.output.max_rank,
            },
            "caveats": [
                *selection_caveats(report.selection),
                *caveats(
                    report.precheck,
                    dropped=0 if is_trained(parse_params(report.method_used)) else len(report.dropped_sites),
                    not_carried=len(report.not_carried),
                    flags=flags,
                    read_text=report.layer_map is not None,
                ),
                *_advice(found, report.method_used),
            ],
        }
    )


def _advice(found: Moved, used: Mapping[str, Any]) -> list[str]:
    """What the last training's curve says, to whoever asks for `used` again."""
    if found.learnt is None:
        return []
    where = "refine." if used.get("refine") else ""
    reads_corpus = Evidence.MAPS in get_method(used["name"]).needs(parse_params(dict(used)))
    more_text = "another 'corpus'" if reads_corpus and not where else f"{where}tokens"
    said = advice(found.learnt.curve, more_text, f"{where}steps")
    return [said] if said else []


def selection_caveats(found: Selection | None) -> list[str]:
    """What to know of figures that also chose."""
    if found is None:
        return []
    if found.shared:
        lines = [
            f"The {found.choosing} example(s) that chose among methods are also those that it is measured "
            "on, being too few to split: its figures flatter it."
        ]
    else:
        lines = [
            f"{found.choosing} of the examples chose among methods, so figures over all of them flatter a "
            f"little; 'selection' has those of the other {found.confirming}."
        ]
    if found.ending != "better":
        lines.insert(0, "Measured on the examples, it is not better than the target alone.")
    return lines
