"""What the API shows of an anchor pool. As in `service.views`, nothing is validated again."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from rebase.errors import PublicError
from rebase.schemas.anchor_pools import AnchorSpec
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import PoolState

if TYPE_CHECKING:
    from rebase.store.anchor_pools import PoolPage, PoolRecord


class PoolOut(BaseModel):
    """An anchor pool. Once `ready`, revisions are commits, and `sites` and `measurements` are known; once
    `invalid`, `error` says why."""

    id: str
    name: str | None
    state: PoolState
    source: RepoRef
    target: RepoRef
    anchor_count: int
    anchors: list[AnchorSpec]
    sites: int | None = Field(description="Modules that all anchors have in common, as pairs of both bases.")
    warnings: list[str]
    measurements: dict[str, float] = Field(description="How well the pool predicts its own anchors.")
    error: PublicError | None
    created_at: datetime
    links: dict[str, str]

    @classmethod
    def from_record(cls, pool: PoolRecord) -> PoolOut:
        """The view of a record."""
        job, document = pool.job, pool.document
        result = job.result if pool.state is PoolState.READY and job.result is not None else {}
        error = job.error if pool.state is PoolState.INVALID else None
        return cls.model_construct(
            id=pool.id,
            name=pool.name,
            state=pool.state,
            source=_build_ref(document["source"]),
            target=_build_ref(document["target"]),
            anchor_count=pool.anchor_count,
            anchors=[_build_anchor(anchor) for anchor in document["anchors"]],
            sites=result.get("sites"),
            warnings=result.get("warnings", []),
            measurements=result.get("measurements", {}),
            error=PublicError.model_construct(**error) if error else None,
            created_at=job.created_at,
            links={
                "self": f"/anchor-pools/{pool.id}",
                "job": f"/jobs/{pool.id}",
                "events": f"/jobs/{pool.id}/events",
            },
        )


class PoolListOut(BaseModel):
    """One page, newest first. Pass `next_cursor` as `cursor` for the next one; null on the last."""

    pools: list[PoolOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: PoolPage) -> PoolListOut:
        """The view of a page."""
        pools = [PoolOut.from_record(pool) for pool in page.pools]
        return cls.model_construct(pools=pools, next_cursor=page.next_cursor)


def _build_ref(stored: dict[str, Any]) -> RepoRef:
    return RepoRef.model_construct(**stored)


def _build_anchor(stored: dict[str, Any]) -> AnchorSpec:
    source, target = _build_ref(stored["source"]), _build_ref(stored["target"])
    return AnchorSpec.model_construct(source=source, target=target, domain=stored["domain"])
