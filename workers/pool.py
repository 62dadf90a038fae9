"""The anchor pool that a conversion may use: found by id or by the two bases, opened when a method asks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rebase.errors import IncompatiblePair, RebaseError, TransferError
from rebase.lora.low_rank import Side
from rebase.methods.base import MethodState
from rebase.schemas.anchor_pools import AnchorPools, Pool
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from workers.anchors import SIDES, Anchor, LoadedAnchorPool, load_anchor_pool, make_pool_unusable_error
from workers.base import Base
from workers.hub.port import is_folder
from workers.reading import LoadedInputs
from workers.report import AnchorRow, PoolSection, RepoRevision
from workers.tools import Runtime
from workers.watch import ProgressReporter

_MAX_LISTED = 5
_COMMIT_PATTERN = re.compile(r"[0-9a-f]{40}")


@dataclass(slots=True)
class PoolOffer:
    """Implements `transfer.precheck.Offer`. `asked`: the request names anchor_ridge, so that trouble with an
    anchor is its own error; for `auto` it is a reason to leave the pool aside."""

    pool: Pool
    inputs: LoadedInputs
    runtime: Runtime
    progress: ProgressReporter
    is_requested: bool
    _loaded_pool: LoadedAnchorPool | None = field(default=None)

    @property
    def count(self) -> int:
        """How many anchors the pool has."""
        return len(self.pool.spec.anchors)

    def open(self) -> LoadedAnchorPool:
        """The pool, every anchor checked; opened once. Raises IncompatiblePair and what hub and reader do."""
        if self._loaded_pool is None:
            try:
                self._loaded_pool = load_anchor_pool(
                    self.pool,
                    self.runtime.hub,
                    {
                        "source": Base(self.inputs.pinned.source, self.inputs.source),
                        "target": Base(self.inputs.pinned.target, self.inputs.target),
                    },
                    self.inputs.pairing,
                    self.inputs.adapter,
                    self.runtime.cache,
                    self.runtime.device,
                    self.progress,
                    phase=Phase.PRECHECKING,
                    lenient=not self.is_requested,
                    pointer=lambda number, side: "/method/pool" if self.is_requested else "/method",
                )
            except (RebaseError, TransferError) as exc:
                if self.is_requested or getattr(exc, "retryable", False) or isinstance(exc, IncompatiblePair):
                    raise
                raise make_pool_unusable_error(exc) from exc
        return self._loaded_pool


def offer_pool(
    request: ConversionRequest,
    inputs: LoadedInputs,
    pools: AnchorPools,
    runtime: Runtime,
    progress: ProgressReporter,
) -> PoolOffer | None:
    """The pool that `method.pool` names, or the newest one between these bases; None where there is none, and
    for methods that use none.

    Raises NotFound or StateConflict, and IncompatiblePair for a pool of other bases.
    """
    params, pinned = request.method, inputs.pinned
    if not params.uses_pool:
        return None
    is_requested = not params.chooses_method
    if params.pool_id is not None:
        pool: Pool | None = pools.get(params.pool_id)
    else:
        pool = pools.find_for_bases(pinned.source.repo_id, pinned.target.repo_id)
    if pool is None:
        return None
    base_ids: dict[Side, set[str]] = {
        "source": {pinned.source.repo_id} | ({request.source.repo_id} if request.source else set()),
        "target": {pinned.target.repo_id, request.target.repo_id},
    }
    for side in SIDES:
        base = (pool.spec.source if side == "source" else pool.spec.target).repo_id
        if base not in base_ids[side]:
            raise IncompatiblePair(
                f"The anchor pool is about the {side} base '{base}', this request about "
                f"'{min(base_ids[side], key=len)}'.",
                hint="Name a pool between these two bases.",
                pointer="/method/pool",
            )
    if not _matches_revisions(pool, request, inputs):
        if not is_requested:
            return None
        raise IncompatiblePair(
            "The anchor pool is about other commits of this repo, which holds both bases.",
            hint="Name a pool between these two revisions.",
            pointer="/method/pool",
        )
    return PoolOffer(pool, inputs, runtime, progress, is_requested)


def _matches_revisions(pool: Pool, request: ConversionRequest, inputs: LoadedInputs) -> bool:
    """Where one repo holds both bases its name does not tell them apart, so that their revisions must."""
    spec, pinned = pool.spec, inputs.pinned
    if pinned.source.repo_id != pinned.target.repo_id:
        return True
    source_revision = request.source.revision if request.source else None
    return spec.source.revision in {pinned.source.sha, source_revision} and spec.target.revision in {
        pinned.target.sha,
        request.target.revision,
    }


def build_pool_report(
    method_state: Any, offer: PoolOffer | None, inputs: LoadedInputs
) -> tuple[PoolSection | None, tuple[str, ...]]:
    """What the report says of the pool, and warnings about it; nothing when nothing was predicted from it."""
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
    repo = anchor.repos[side]
    return RepoRevision(repo_id=repo.repo_id, sha=repo.sha)


def _warn_left_out(offer: PoolOffer) -> list[str]:
    """Modules of the target that the adapter reaches and some anchor does not."""
    dropped = [str(p.target) for p in offer.inputs.pairing.pairs if p not in set(offer.open().pairs)]
    remainder = f" and {len(dropped) - _MAX_LISTED} more" if len(dropped) > _MAX_LISTED else ""
    listed = f"{', '.join(dropped[:_MAX_LISTED])}{remainder}"
    return (
        [f"{len(dropped)} module(s) get no update, as not every anchor has them: {listed}."]
        if dropped
        else []
    )


def _warn_other_commits(offer: PoolOffer, inputs: LoadedInputs) -> list[str]:
    """Bases that have moved on since the pool was registered."""
    spec, pinned = offer.pool.spec, inputs.pinned
    return [
        f"The pool was registered with {repo.repo_id} at {ref.revision}; this job reads {repo.sha}."
        for ref, repo in ((spec.source, pinned.source), (spec.target, pinned.target))
        if _COMMIT_PATTERN.fullmatch(ref.revision)
        and not is_folder(repo.repo_id)
        and ref.revision != repo.sha
    ]


def _warn_if_member(offer: PoolOffer, inputs: LoadedInputs) -> list[str]:
    """An adapter that is an anchor itself has its answer in the pool already."""
    adapter = inputs.pinned.adapter
    return [
        f"The adapter is itself an anchor of the pool; its own counterpart there is {anchor.repos['target']}."
        for anchor in offer.open().anchors
        if (anchor.repos["source"].repo_id, anchor.repos["source"].sha) == (adapter.repo_id, adapter.sha)
    ]
