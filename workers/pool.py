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
from workers.anchors import SIDES, Anchor, OpenPool, open_pool, unusable
from workers.base import Base
from workers.hub.port import is_folder
from workers.reading import Opened
from workers.report import AnchorRow, PoolPart, RepoAt
from workers.tools import Tools
from workers.watch import Watch

_NAMED = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(slots=True)
class PoolOffer:
    """Implements `transfer.precheck.Offer`. `asked`: the request names anchor_ridge, so that trouble with an
    anchor is its own error; for `auto` it is a reason to leave the pool aside."""

    pool: Pool
    opened: Opened
    tools: Tools
    watch: Watch
    asked: bool
    _open: OpenPool | None = field(default=None)

    @property
    def count(self) -> int:
        """How many anchors the pool has."""
        return len(self.pool.spec.anchors)

    def open(self) -> OpenPool:
        """The pool, every anchor checked; opened once. Raises IncompatiblePair and what hub and reader do."""
        if self._open is None:
            try:
                self._open = open_pool(
                    self.pool,
                    self.tools.hub,
                    {
                        "source": Base(self.opened.pinned.source, self.opened.source),
                        "target": Base(self.opened.pinned.target, self.opened.target),
                    },
                    self.opened.pairing,
                    self.opened.adapter,
                    self.tools.cache,
                    self.tools.device,
                    self.watch,
                    phase=Phase.PRECHECKING,
                    lenient=not self.asked,
                    pointer=lambda number, side: "/method/pool" if self.asked else "/method",
                )
            except (RebaseError, TransferError) as exc:
                if self.asked or getattr(exc, "retryable", False) or isinstance(exc, IncompatiblePair):
                    raise
                raise unusable(exc) from exc
        return self._open


def offer_pool(
    request: ConversionRequest, opened: Opened, pools: AnchorPools, tools: Tools, watch: Watch
) -> PoolOffer | None:
    """The pool that `method.pool` names, or the newest one between these bases; None where there is none, and
    for methods that use none.

    Raises NotFound or StateConflict, and IncompatiblePair for a pool of other bases.
    """
    params, pinned = request.method, opened.pinned
    if not params.uses_pool:
        return None
    asked = not params.chooses_method
    if params.pool_id is not None:
        pool: Pool | None = pools.get(params.pool_id)
    else:
        pool = pools.find_for_bases(pinned.source.repo_id, pinned.target.repo_id)
    if pool is None:
        return None
    named: dict[Side, set[str]] = {
        "source": {pinned.source.repo_id} | ({request.source.repo_id} if request.source else set()),
        "target": {pinned.target.repo_id, request.target.repo_id},
    }
    for side in SIDES:
        base = (pool.spec.source if side == "source" else pool.spec.target).repo_id
        if base not in named[side]:
            raise IncompatiblePair(
                f"The anchor pool is about the {side} base '{base}', this request about "
                f"'{min(named[side], key=len)}'.",
                hint="Name a pool between these two bases.",
                pointer="/method/pool",
            )
    if not _same_way(pool, request, opened):
        if not asked:
            return None
        raise IncompatiblePair(
            "The anchor pool is about other commits of this repo, which holds both bases.",
            hint="Name a pool between these two revisions.",
            pointer="/method/pool",
        )
    return PoolOffer(pool, opened, tools, watch, asked)


def _same_way(pool: Pool, request: ConversionRequest, opened: Opened) -> bool:
    """Where one repo holds both bases its name does not tell them apart, so that their revisions must."""
    spec, pinned = pool.spec, opened.pinned
    if pinned.source.repo_id != pinned.target.repo_id:
        return True
    asked_source = request.source.revision if request.source else None
    return spec.source.revision in {pinned.source.sha, asked_source} and spec.target.revision in {
        pinned.target.sha,
        request.target.revision,
    }


def told_of_pool(
    prepared: Any, offer: PoolOffer | None, opened: Opened
) -> tuple[PoolPart | None, tuple[str, ...]]:
    """What the report says of the pool, and warnings about it; nothing when nothing was predicted from it."""
    if offer is None or not isinstance(prepared, MethodState) or not prepared.anchor_weights:
        return None, ()
    rows = [
        AnchorRow(
            source=_at(anchor, "source"),
            target=_at(anchor, "target"),
            domain=anchor.domain,
            weight=told.weight,
            leverage=told.leverage,
            loo_error=told.loo_error,
        )
        for anchor, told in zip(offer.open().anchors, prepared.anchor_weights, strict=True)
    ]
    curve = [dict(row) for row in prepared.curve]
    return PoolPart(id=offer.pool.id, anchors=rows, curve=curve), (
        *_left_out(offer),
        *_other_commits(offer, opened),
        *_itself(offer, opened),
    )


def _at(anchor: Anchor, side: Side) -> RepoAt:
    repo = anchor.repos[side]
    return RepoAt(repo_id=repo.repo_id, sha=repo.sha)


def _left_out(offer: PoolOffer) -> list[str]:
    """Modules of the target that the adapter reaches and some anchor does not."""
    left = [str(p.target) for p in offer.opened.pairing.pairs if p not in set(offer.open().pairs)]
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    named = f"{', '.join(left[:_NAMED])}{more}"
    return [f"{len(left)} module(s) get no update, as not every anchor has them: {named}."] if left else []


def _other_commits(offer: PoolOffer, opened: Opened) -> list[str]:
    """Bases that have moved on since the pool was registered."""
    spec, pinned = offer.pool.spec, opened.pinned
    return [
        f"The pool was registered with {repo.repo_id} at {ref.revision}; this job reads {repo.sha}."
        for ref, repo in ((spec.source, pinned.source), (spec.target, pinned.target))
        if _COMMIT.fullmatch(ref.revision) and not is_folder(repo.repo_id) and ref.revision != repo.sha
    ]


def _itself(offer: PoolOffer, opened: Opened) -> list[str]:
    """An adapter that is an anchor itself has its answer in the pool already."""
    moved = opened.pinned.adapter
    return [
        f"The adapter is itself an anchor of the pool; its own counterpart there is {anchor.repos['target']}."
        for anchor in offer.open().anchors
        if (anchor.repos["source"].repo_id, anchor.repos["source"].sha) == (moved.repo_id, moved.sha)
    ]
