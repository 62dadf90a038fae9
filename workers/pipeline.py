"""One conversion, from names to a verified folder. The whole journey reads top to bottom in `run`.

    resolve → read → pre-check → carry, site by site → build → verify → a folder ready to publish

Nothing here knows about jobs, SQL or Celery: `workers.runner` does. `rebase transfer` calls `run` directly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from core.errors import Rejected, printable
from core.pools import NO_POOLS, Pools
from core.requests import ConversionRequest
from core.states import Phase
from transfer.adapter.write import BuiltAdapter, build_adapter
from transfer.catalogue import AnchorRidgeParams, Thresholds
from transfer.dare import dare
from transfer.errors import IncompatiblePair
from transfer.interface import Evidence, LowRank, Pair, Site
from transfer.pairing import Pairing, narrowed, pair_sites
from transfer.registry import get_method
from workers.activations.evidence import Activations
from workers.activations.gather import gather, stored_bases
from workers.bases import Bases
from workers.evidence import Base, EvidenceSource
from workers.fold import folded
from workers.hub.port import Published, is_folder
from workers.judge import Judged, judge
from workers.pool import offer_pool, told_of_pool
from workers.reading import Opened, licence_of, paired_embeddings, read, resolve
from workers.report import (
    LayerMap,
    RepoAt,
    Report,
    SiteRow,
    TextRead,
    caveats,
    finite,
    library_versions,
    rebase_version,
    summarise,
)
from workers.resolve import OutputPlace, output_name, output_place
from workers.token_rows import carry_tokens, plan_tokens
from workers.tools import Tools
from workers.training.run import Learnt, learn, refined
from workers.verify.check import verify
from workers.watch import Resolved, Watch
from workers.writing import write_card_and_report, write_tensors

Kind = Literal["convert", "precheck"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """The end of a run: the evidence, and for a conversion the folder and where it belongs."""

    report: Report
    folder: Path | None
    place: OutputPlace | None


def run(
    request: ConversionRequest,
    kind: Kind,
    tools: Tools,
    watch: Watch,
    folder: Path,
    *,
    marker: str | None,
    pools: Pools = NO_POOLS,
    corpus_file: Path | None = None,
) -> Conversion | Published:
    """Convert (or only pre-check) and leave a verified adapter in `folder`, which must not exist yet.

    `marker` is what the publishing commit's message will carry (None: the result is not pushed). A commit
    that carries it already ends the run at once, so that no job commits twice. Raises errors of
    `core.errors` and `transfer.errors`; `Rejected` when the verdict ends the job.
    """
    pinned, adapter_config, adapter_reader = resolve(request, tools.hub, watch)
    place = None
    if marker is not None and kind == "convert":
        repo_id = output_name(tools.hub, request)
        # In this order: a commit that an earlier attempt makes after the search then finds the parent moved.
        head = tools.hub.head(repo_id)
        published = tools.hub.find_commit(repo_id, marker)
        if published is not None:
            return published
        place = output_place(tools.hub, request, pinned, repo_id, head)
    watch.resolved(
        Resolved(
            adapter_sha=pinned.adapter.sha,
            source_repo=pinned.source.repo_id,
            source_sha=pinned.source.sha,
            target_sha=pinned.target.sha,
            output_repo=place.repo_id if place else None,
        )
    )
    opened = read(request, tools.hub, pinned, adapter_config, adapter_reader, watch)
    bases = stored_bases(opened, tools)
    activations = gather(request, opened, bases, tools, corpus_file, watch)
    opened = replace(opened, pairing=_paired(opened, request, activations))
    evidence = _evidence(opened, tools, request, pools, activations, watch)

    watch.step(Phase.PRECHECKING)
    judged = judge(opened, evidence, request.method, request.precheck.thresholds)
    precheck = judged.precheck
    opened = replace(opened, pairing=narrowed(opened.pairing, judged.pairs))
    tokens = plan_tokens(opened, tools.hub, judged.params.name, wanted=request.output.token_rows)
    report = tokens.told(_opening(request, opened, judged, evidence))
    watch.diagnosed(report)
    if (
        precheck.verdict == "incompatible"
        and kind == "convert"
        and request.precheck.on_incompatible == "reject"
    ):
        raise Rejected(
            "The pre-check found this pair incompatible. "
            + " ".join(reason.message for reason in precheck.reasons if reason.weight == "blocking"),
            hint='Retrain on the new base, or set precheck.on_incompatible to "warn" to convert anyway.',
        )
    if kind == "precheck":
        return Conversion(report, None, None)

    deltas, rows, learnt = _carry(opened, evidence, judged, bases, tools, watch)
    watch.step(Phase.TRANSFERRING)
    built = build_adapter(
        opened.target,
        deltas,
        dtype=request.output.dtype,
        max_rank=request.output.max_rank,
        base_model=pinned.target.repo_id,
        revision=None if is_folder(pinned.target.repo_id) else pinned.target.sha,
    )
    carried = carry_tokens(tokens, opened, built, request.output.dtype)
    built = carried.built
    report = carried.summed(_with_sites(carried.told(report), opened, rows, built, request, learnt))
    watch.diagnosed(report)

    write_tensors(folder, built)
    watch.step(Phase.VERIFYING)
    report = report.model_copy(update={"verification": verify(opened, built, folder, deltas, tools.device)})
    licences = {
        repo.repo_id: licence_of(tools.hub, repo) for repo in (pinned.adapter, pinned.source, pinned.target)
    }
    write_card_and_report(folder, report, licences)
    watch.diagnosed(report)
    return Conversion(report, folder, place)


def _evidence(
    opened: Opened,
    tools: Tools,
    request: ConversionRequest,
    pools: Pools,
    activations: Activations | None,
    watch: Watch,
) -> EvidenceSource:
    most = getattr(request.method, "anchor_tokens", 4096)
    return EvidenceSource(
        source=Base(opened.pinned.source, opened.source),
        target=Base(opened.pinned.target, opened.target),
        cache=tools.cache,
        device=tools.device,
        embeddings=paired_embeddings(opened, most),
        offer=offer_pool(request, opened, pools, tools, watch),
        activations=activations,
    )


def _paired(opened: Opened, request: ConversionRequest, activations: Activations | None) -> Pairing:
    """Sites by similarity of layers where both bases read a text, else by relative depth."""
    params = request.method
    if activations is None and not params.fold:
        return opened.pairing
    # A pool predicts the target layer's own update, which is not made of several.
    fold = params.fold and not isinstance(params, AnchorRidgeParams)
    return pair_sites(
        opened.source,
        opened.target,
        opened.adapter.sites,
        params.layer_scale,
        fold=fold,
        layers=activations.layers if activations is not None else None,
    )


def _carry(
    opened: Opened, evidence: EvidenceSource, judged: Judged, bases: Bases, tools: Tools, watch: Watch
) -> tuple[dict[Site, LowRank], list[SiteRow], Learnt | None]:
    """Every site in turn, so that memory does not grow with depth."""
    params, state, device = judged.params, judged.prepared, evidence.device
    method = get_method(params.name)
    pairs = opened.pairing.pairs
    needs = method.needs(params)
    if state is None:  # a method that refused in the pre-check says so again, now as an error
        offer = evidence.offer if Evidence.ANCHORS in needs else None
        anchors = offer.open() if offer is not None else None
        pairs = anchors.pairs if anchors is not None else pairs
        state = method.prepare(params, Pair(opened.source.config, opened.target.config, pairs, anchors))
    if Evidence.EMBEDDINGS in needs and evidence.embeddings is None:
        raise IncompatiblePair(
            "The two bases share no token (or have no readable tokenizer.json), so nothing pairs them.",
            hint="Use a method or alignment that needs no shared vocabulary.",
            pointer="/method",
        )
    phase = Phase.FACTORIZING if Evidence.FACTORS in needs else Phase.TRANSFERRING
    evidence, learnt = learn(opened, bases, evidence, pairs, params, tools, watch)
    if evidence.activations is not None:
        evidence.activations.plan(pairs)
    deltas: dict[Site, list[LowRank]] = {}
    rows: list[SiteRow] = []
    for done, pair in enumerate(pairs):
        watch.step(phase, done, len(pairs), "sites")
        delta = opened.adapter.delta(pair.source).scaled(pair.scale)
        on_device = LowRank(delta.B.to(device), delta.A.to(device))
        carried = method.carry(params, state, pair, on_device, evidence.at(pair, needs))
        if params.dare is not None:
            carried = dare(carried, params.dare, pair.target)
        deltas.setdefault(pair.target, []).append(LowRank(carried.delta.B.cpu(), carried.delta.A.cpu()))
        # What is predicted from a pool is the target layer's own update, which is not shared out.
        shared = {"layer_scale": pair.scale} if pair.scale != 1.0 and Evidence.ANCHORS not in needs else {}
        measured = finite({**carried.measurements, **shared})
        rows.append(
            SiteRow(
                source=str(pair.source),
                target=str(pair.target),
                measurements=measured,
                flags=list(carried.flags),
            )
        )
    watch.step(phase, len(pairs), len(pairs), "sites")
    whole, merged = folded(deltas, rows)
    if params.refine is not None:
        whole, more = refined(opened, bases, whole, params.refine, tools, watch)
        learnt = more if learnt is None else learnt.then(more)
    return whole, merged, learnt


def _opening(request: ConversionRequest, opened: Opened, judged: Judged, evidence: EvidenceSource) -> Report:
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
        pool=pool,
        layer_map=_layer_map(evidence.activations, request.precheck.thresholds),
        dropped_sites=[str(site) for site in opened.pairing.dropped],
        unused_source_layers=list(opened.pairing.unused_source_layers),
        not_carried=list(opened.adapter.not_carried),
        warnings=[printable(warning) for warning in (*pinned.warnings, *opened.adapter.warnings, *of_pool)],
    )


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


def _with_sites(
    report: Report,
    opened: Opened,
    rows: list[SiteRow],
    built: BuiltAdapter,
    request: ConversionRequest,
    learnt: Learnt | None,
) -> Report:
    by_target = {str(site): finite(measured) for site, measured in built.measurements.items()}
    merged = [
        row.model_copy(update={"measurements": {**row.measurements, **by_target.get(row.target, {})}})
        for row in rows
    ]
    flags = {flag for row in merged for flag in row.flags}
    return report.model_copy(
        update={
            "sites": merged,
            "summary": summarise(merged) | (finite(learnt.measurements) if learnt else {}),
            "cast_heads_trained_on": learnt.heads_of if learnt else None,
            "output": {
                "rank": built.rank,
                "dtype": request.output.dtype,
                "max_rank": request.output.max_rank,
            },
            "caveats": caveats(
                report.precheck,
                dropped=len(report.dropped_sites),
                not_carried=len(report.not_carried),
                flags=flags,
                read_text=report.layer_map is not None,
            ),
        }
    )
