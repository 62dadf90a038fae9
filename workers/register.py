"""Registering an anchor pool: names are pinned, adapters read, and what the pool can predict is measured."""

from __future__ import annotations

from typing import Any

from rebase.errors import (
    MalformedAdapter,
    RebaseError,
    RequestInvalid,
    TransferError,
    escape_control_characters,
)
from rebase.lora.low_rank import Side
from rebase.methods.anchor_ridge.method import AnchorRidge
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base import BasePairInfo
from rebase.methods.site_pairing import pair_sites
from rebase.schemas.anchor_pools import Pool, PoolRequest
from rebase.schemas.states import Phase
from transfer.linalg import frobenius
from transfer.weights import ModelWeights
from workers.anchors import SIDES, OpenPool, about_anchor, open_pool
from workers.base import Base
from workers.report import finite
from workers.resolve import check_different, pin
from workers.tensors.model_reader import open_model
from workers.tools import Tools
from workers.watch import Watch


def register(request: PoolRequest, tools: Tools, watch: Watch) -> dict[str, Any]:
    """The registering job's result: `pool` with every revision a commit, `sites`, `warnings`, `measurements`.

    Every tensor of every anchor is read: a broken or empty adapter is found here, and the inner products that
    every later prediction needs are cached. Raises what hub and readers raise, pointing at the anchor.
    """
    watch.step(Phase.RESOLVING, 0, 2, "bases")
    source, target = pin(tools.hub, request.source, "/source"), pin(tools.hub, request.target, "/target")
    check_different(source, target)
    watch.step(Phase.READING)
    bases: dict[Side, Base] = {}
    for side, repo in zip(SIDES, (source, target), strict=True):
        try:
            config, reader, _ = open_model(tools.hub, repo)
            bases[side] = Base(repo, ModelWeights(config, reader))
        except (RebaseError, TransferError) as exc:
            exc.pointer = exc.pointer or f"/{side}"
            raise
    old, new = bases["source"].weights, bases["target"].weights
    pairing = pair_sites(old, new, old.sites, layer_scale=True)
    pool = open_pool(
        Pool(None, request),
        tools.hub,
        bases,
        pairing,
        None,
        tools.cache,
        tools.device,
        watch,
        phase=Phase.READING,
        pointer=lambda number, side: f"/anchors/{number}/{side}",
    )
    _check_updates(pool, watch)
    for done, pair in enumerate(pool.pairs):
        watch.step(Phase.FACTORIZING, done, len(pool.pairs), "sites")
        pool.kernels(pair, "delta")
    watch.step(Phase.FACTORIZING, len(pool.pairs), len(pool.pairs), "sites")
    return {
        "pool": pool.pinned(request, source, target).model_dump(mode="json"),
        "sites": len(pool.pairs),
        "warnings": _warnings(pool, request),
        "measurements": _measured(pool),
    }


def _check_updates(pool: OpenPool, watch: Watch) -> None:
    """Every adapter changes something at the common sites, and no tensor of it is broken."""
    for number, anchor in enumerate(pool.anchors):
        watch.step(Phase.PRECHECKING, number, len(pool.anchors), "anchors")
        for side in SIDES:
            sites = sorted({getattr(pair, side) for pair in pool.pairs})
            try:
                size = sum(frobenius(anchor.adapters[side].delta(site)) for site in sites)
            except MalformedAdapter as exc:
                about_anchor(exc, str(anchor.repos[side]), f"/anchors/{number}/{side}")
                raise
            if size == 0.0:
                raise RequestInvalid(
                    f"{anchor.repos[side]} changes nothing at the modules that all anchors share.",
                    hint="Leave this anchor out.",
                    pointer=f"/anchors/{number}/{side}",
                )


def _measured(pool: OpenPool) -> dict[str, float]:
    """How well the pool predicts its own anchors, each from the others."""
    source, target = (pool.bases[side].weights.config for side in SIDES)
    pair = BasePairInfo(source, target, pool.pairs, pool)
    told = AnchorRidge().prepare(AnchorRidgeParams(), pair).measurements
    names = ("anchors", "domains", "domain_entropy", "loo_error", "loo_error_mean", "penalty")
    return finite({name: told[name] for name in names})


def _warnings(pool: OpenPool, request: PoolRequest) -> list[str]:
    """Anchors that say that they were trained on another base than the pool's."""
    named = {"source": request.source.repo_id, "target": request.target.repo_id}
    return [
        escape_control_characters(
            f"{anchor.repos[side].repo_id} names '{base}' as its base; the pool says '{named[side]}'."
        )
        for anchor in pool.anchors
        for side in SIDES
        if (base := anchor.named_bases[side]) is not None and base != named[side]
    ]
