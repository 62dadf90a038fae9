"""Registers an anchor pool: pins revisions, reads all adapters, and measures the leave-one-out error."""

from __future__ import annotations

from typing import Any

from rebase.errors import (
    MalformedAdapter,
    RebaseError,
    RequestInvalid,
    TransferError,
    escape_control_characters,
)
from rebase.evidence.anchor_pool import SIDES, LoadedAnchorPool, annotate_anchor_error, load_anchor_pool
from rebase.evidence.inputs import require_distinct_bases
from rebase.hub.base import pin
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import Side
from rebase.methods.anchor_ridge.method import AnchorRidge
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base import BasePairInfo
from rebase.methods.site_pairing import pair_sites
from rebase.models.base_pair import BaseModelRef
from rebase.models.model_reader import open_model
from rebase.models.weights import ModelWeights
from rebase.report.progress import ProgressReporter
from rebase.report.schema import keep_finite
from rebase.runtime import Runtime
from rebase.schemas.anchor_pools import Pool, PoolRequest
from rebase.schemas.states import Phase


def register_pool(request: PoolRequest, runtime: Runtime, progress: ProgressReporter) -> dict[str, Any]:
    """Register a pool; returns `pool` with every revision pinned, `sites`, `warnings` and `measurements`.

    Reads every tensor of every anchor, to detect broken or empty adapters and to cache the inner products
    that later predictions need. Raises the errors of hub and readers, pointing at the anchor.
    """
    progress.update(Phase.RESOLVING, 0, 2, "bases")
    source, target = pin(runtime.hub, request.source, "/source"), pin(runtime.hub, request.target, "/target")
    require_distinct_bases(source, target)
    progress.update(Phase.READING)
    bases: dict[Side, BaseModelRef] = {}
    for side, repo in zip(SIDES, (source, target), strict=True):
        try:
            config, reader, _ = open_model(runtime.hub, repo)
            bases[side] = BaseModelRef(repo, ModelWeights(config, reader))
        except (RebaseError, TransferError) as exc:
            exc.pointer = exc.pointer or f"/{side}"
            raise
    source_weights, target_weights = bases["source"].weights, bases["target"].weights
    pairing = pair_sites(source_weights, target_weights, source_weights.sites, layer_scale=True)
    pool = load_anchor_pool(
        Pool(None, request),
        runtime.hub,
        bases,
        pairing,
        None,
        runtime.cache,
        runtime.device,
        progress,
        phase=Phase.READING,
        pointer=lambda number, side: f"/anchors/{number}/{side}",
    )
    _check_updates(pool, progress)
    for done, pair in enumerate(pool.pairs):
        progress.update(Phase.FACTORIZING, done, len(pool.pairs), "sites")
        pool.kernels(pair, "delta")
    progress.update(Phase.FACTORIZING, len(pool.pairs), len(pool.pairs), "sites")
    return {
        "pool": pool.pin_request(request, source, target).model_dump(mode="json"),
        "sites": len(pool.pairs),
        "warnings": _build_warnings(pool, request),
        "measurements": _measure_predictions(pool),
    }


def _check_updates(pool: LoadedAnchorPool, progress: ProgressReporter) -> None:
    """Check that every adapter is readable and changes something at the common sites."""
    for number, anchor in enumerate(pool.anchors):
        progress.update(Phase.PRECHECKING, number, len(pool.anchors), "anchors")
        for side in SIDES:
            sites = sorted({getattr(pair, side) for pair in pool.pairs})
            try:
                norm_sum = sum(frobenius(anchor.adapters[side].delta(site)) for site in sites)
            except MalformedAdapter as exc:
                annotate_anchor_error(exc, str(anchor.repos[side]), f"/anchors/{number}/{side}")
                raise
            if norm_sum == 0.0:
                raise RequestInvalid(
                    f"{anchor.repos[side]} changes none of the modules that all anchors share.",
                    hint="Leave out this anchor.",
                    pointer=f"/anchors/{number}/{side}",
                )


def _measure_predictions(pool: LoadedAnchorPool) -> dict[str, float]:
    """How well the pool predicts each of its anchors from the others."""
    source, target = (pool.bases[side].weights.config for side in SIDES)
    pair = BasePairInfo(source, target, pool.pairs, pool)
    measurements = AnchorRidge().prepare(AnchorRidgeParams(), pair).measurements
    names = ("anchors", "domains", "domain_entropy", "loo_error", "loo_error_mean", "penalty")
    return keep_finite({name: measurements[name] for name in names})


def _build_warnings(pool: LoadedAnchorPool, request: PoolRequest) -> list[str]:
    """Warnings about anchors that declare another base than the pool's."""
    base_ids = {"source": request.source.repo_id, "target": request.target.repo_id}
    return [
        escape_control_characters(
            f"{anchor.repos[side].repo_id} names '{base}' as its base; the pool says '{base_ids[side]}'."
        )
        for anchor in pool.anchors
        for side in SIDES
        if (base := anchor.declared_bases[side]) is not None and base != base_ids[side]
    ]
