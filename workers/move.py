"""One method's way from opened repos to updates of the target: evidence → verdict → one site after another.

`begun` and `moved` are all of a conversion that depends on the method, so that comparing several methods is
calling them several times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rebase.errors import IncompatiblePair
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base import BasePairInfo, Evidence, SitePair, SiteResult
from rebase.methods.base_params import DareParams, MethodParams
from rebase.methods.dare import drop_and_rescale
from rebase.methods.registry import get_method
from rebase.methods.site_pairing import Pairing, pair_sites
from rebase.schemas.anchor_pools import AnchorPools
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from transfer.precheck.measure import probe_pairs
from workers.activations.evidence import Activations
from workers.activations.gather import gather
from workers.base import Base
from workers.bases import Bases
from workers.evidence import EvidenceSource
from workers.fold import folded
from workers.judge import Judged, judge
from workers.pool import PoolOffer, offer_pool
from workers.reading import Opened, paired_embeddings
from workers.report import SiteRow, finite
from workers.tools import Tools
from workers.training.run import Learnt, refined, train_if_needed
from workers.watch import Watch


@dataclass(frozen=True, slots=True)
class Bench:
    """What every method of a request finds: both bases and the adapter, and what work is done with."""

    opened: Opened
    bases: Bases
    tools: Tools
    pools: AnchorPools
    corpus_file: Path | None
    watch: Watch


@dataclass(frozen=True, slots=True)
class Move:
    """A method that has been judged. `opened` holds the sites that it can carry."""

    opened: Opened
    evidence: EvidenceSource
    judged: Judged


@dataclass(frozen=True, slots=True)
class Moved:
    """Updates of the target in float32 on the CPU, a row for each, and what was learnt where one was."""

    deltas: dict[Site, LowRank]
    rows: list[SiteRow]
    learnt: Learnt | None


def begun(request: ConversionRequest, bench: Bench, offer: PoolOffer | None = None) -> Move:
    """Gather what the request's method looks at and judge it; `auto` is resolved here.

    `offer`: the pool, where it has been found before.
    """
    opened, watch = bench.opened, bench.watch
    activations = gather(request, opened, bench.bases, bench.tools, bench.corpus_file, watch)
    pooled = replace(opened, pairing=pair_all_sites(opened, activations))
    evidence = EvidenceSource(
        source=Base(opened.pinned.source, opened.source),
        target=Base(opened.pinned.target, opened.target),
        cache=bench.tools.cache,
        device=bench.tools.device,
        embeddings=paired_embeddings(opened, getattr(request.method, "anchor_tokens", 4096)),
        offer=offer or offer_pool(request, pooled, bench.pools, bench.tools, watch),
        activations=activations,
    )
    opened = replace(opened, pairing=_planned(opened, request.method, activations))
    watch.step(Phase.PRECHECKING)
    judged = judge(
        opened,
        evidence,
        request.method,
        request.precheck.thresholds,
        lambda params: _planned(opened, params, activations),
    )
    return Move(replace(opened, pairing=judged.pairing), evidence, judged)


def pair_all_sites(
    opened: Opened, activations: Activations | None, *, layer_scale: bool = True, fold: bool = False
) -> Pairing:
    """Sites by similarity of layers where both bases read a text, else by relative depth."""
    return pair_sites(
        opened.source,
        opened.target,
        opened.adapter.sites,
        layer_scale,
        fold=fold,
        layer_maps=activations.layers if activations is not None else None,
    )


def _planned(opened: Opened, params: MethodParams, activations: Activations | None) -> Pairing:
    """Sites as this method pairs them; the pass over the text knows which ones the pre-check will ask for."""
    fold = params.fold if params.chooses_method else get_method(params.name).folds_layers(params)
    pairing = pair_all_sites(opened, activations, layer_scale=params.layer_scale, fold=fold)
    if activations is not None:
        activations.plan(probe_pairs(pairing.pairs))
    return pairing


def moved(move: Move, bench: Bench) -> Moved:
    """The update at every site of the target, with what the request wants done to any method's update."""
    return finished(carried(move, bench), move, bench)


def finished(found: Moved, move: Move, bench: Bench) -> Moved:
    """A carried update thinned out and trained on, as the method's parameters say."""
    params = move.judged.params
    if params.dare is not None:
        found = thinned(found, params.dare, move.evidence.device)
    if params.refine is not None:
        deltas, more = refined(move.opened, bench.bases, found.deltas, params, bench.tools, bench.watch)
        found = Moved(deltas, found.rows, more if found.learnt is None else found.learnt.then(more))
    return found


def carried(move: Move, bench: Bench) -> Moved:
    """What the method alone carries: every site in turn, so that memory does not grow with depth."""
    params, evidence, watch = move.judged.params, move.evidence, bench.watch
    method = get_method(params.name)
    needs = method.needs(params)
    state, pairs = _prepared(move)
    if Evidence.EMBEDDINGS in needs and evidence.embeddings is None:
        raise IncompatiblePair(
            "The two bases share no token (or have no readable tokenizer.json), so nothing pairs them.",
            hint="Use a method or alignment that needs no shared vocabulary.",
            pointer="/method",
        )
    phase = Phase.FACTORIZING if Evidence.FACTORS in needs else Phase.TRANSFERRING
    evidence, learnt = train_if_needed(move.opened, bench.bases, evidence, pairs, params, bench.tools, watch)
    if evidence.activations is not None:
        evidence.activations.plan(pairs)
    deltas: dict[Site, list[LowRank]] = {}
    rows: list[SiteRow] = []
    for done, pair in enumerate(pairs):
        watch.step(phase, done, len(pairs), "sites")
        delta = move.opened.adapter.delta(pair.source).scaled(pair.scale)
        on_device = LowRank(delta.B.to(evidence.device), delta.A.to(evidence.device))
        result = method.transfer_site(params, state, pair, on_device, evidence.at(pair, needs))
        deltas.setdefault(pair.target, []).append(LowRank(result.delta.B.cpu(), result.delta.A.cpu()))
        # What a pool predicts or a training finds is the target layer's own update, which is not shared out.
        scaled = pair.scale != 1.0 and not needs & {Evidence.ANCHORS, Evidence.TRAINED}
        rows.append(_row(pair, result, {"layer_scale": pair.scale} if scaled else {}))
    watch.step(phase, len(pairs), len(pairs), "sites")
    whole, merged = folded(deltas, rows)
    return Moved(whole, merged, learnt)


def thinned(found: Moved, params: DareParams, device: torch.device) -> Moved:
    """DARE at every site, at one share. What it measures joins the rows."""
    sites = {str(site): site for site in found.deltas}
    deltas, rows = dict(found.deltas), []
    for row in found.rows:
        site = sites[row.target]
        delta = found.deltas[site]
        on_device = LowRank(delta.B.to(device), delta.A.to(device))
        result = drop_and_rescale(
            SiteResult(on_device, dict(row.measurements), tuple(row.flags)), params, site
        )
        deltas[site] = LowRank(result.delta.B.cpu(), result.delta.A.cpu())
        update = {"measurements": finite(result.measurements), "flags": list(result.flags)}
        rows.append(row.model_copy(update=update))
    return Moved(deltas, rows, found.learnt)


def _prepared(move: Move) -> tuple[object, tuple[SitePair, ...]]:
    """The method's state and sites. One that refused in the pre-check says so again, now as an error."""
    params, evidence, opened = move.judged.params, move.evidence, move.opened
    if move.judged.prepared is not None:
        return move.judged.prepared, opened.pairing.pairs
    method = get_method(params.name)
    offer = evidence.offer if Evidence.ANCHORS in method.needs(params) else None
    anchors = offer.open() if offer is not None else None
    pairs = anchors.pairs if anchors is not None else opened.pairing.pairs
    state = method.prepare(params, BasePairInfo(opened.source.config, opened.target.config, pairs, anchors))
    return state, pairs


def _row(pair: SitePair, result: SiteResult, more: dict[str, float]) -> SiteRow:
    return SiteRow(
        source=str(pair.source),
        target=str(pair.target),
        measurements=finite({**result.measurements, **more}),
        flags=list(result.flags),
    )
