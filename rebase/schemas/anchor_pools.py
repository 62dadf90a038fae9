"""Anchor pools: tasks with an adapter on both bases, from which a further adapter is predicted [003].

The same schema serves `POST /anchor-pools`, `rebase transfer --pool FILE` and, with pinned revisions,
registered pools.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rebase.errors import NotFound, PublicError
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import PoolState

if TYPE_CHECKING:
    from rebase.store.anchor_pools import PoolPage, PoolRecord


MIN_ANCHORS = 2
MAX_ANCHORS = 256


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AnchorSpec(_Model):
    """The two adapters of one task."""

    source: RepoRef = Field(description="The task's adapter on the pool's source base.")
    target: RepoRef = Field(description="The same task's adapter on the pool's target base.")
    domain: str = Field(
        default="general",
        min_length=1,
        max_length=64,
        pattern=r"^[\w][\w .:/-]*$",
        description="The kind of task. A pool of a single domain predicts poorly outside of it.",
    )


class PoolRequest(_Model):
    """`POST /anchor-pools`."""

    name: str | None = Field(default=None, min_length=1, max_length=100, description="A display name.")
    source: RepoRef
    target: RepoRef
    anchors: tuple[AnchorSpec, ...] = Field(min_length=MIN_ANCHORS, max_length=MAX_ANCHORS)

    @field_validator("name")
    @classmethod
    def _require_printable_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must be one line of printable text")
        return value

    @model_validator(mode="after")
    def _require_distinct_repos(self) -> PoolRequest:
        if self.source == self.target:
            raise ValueError("source and target are the same base model and revision")
        for side in ("source", "target"):
            seen: dict[RepoRef, int] = {}
            for number, anchor in enumerate(self.anchors):
                ref: RepoRef = getattr(anchor, side)
                if ref in seen:
                    raise ValueError(f"anchors[{number}].{side} is anchors[{seen[ref]}].{side} again: {ref}")
                seen[ref] = number
        return self


@dataclass(frozen=True, slots=True)
class Pool:
    """A usable pool. `id` is None for a file on the command line, which was never registered."""

    id: str | None
    spec: PoolRequest


class AnchorPools(Protocol):
    """How a conversion finds its tenant's pools."""

    def get(self, pool_id: str) -> Pool:
        """A pool by its id. Raises NotFound, and StateConflict while it is not ready."""

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        """The newest ready pool for this pair of base repos, if any."""


class NoAnchorPools:
    """For runs without anchor pools."""

    def get(self, pool_id: str) -> Pool:
        """Always raises NotFound."""
        raise NotFound(f"There is no anchor pool '{pool_id}' here.", pointer="/method/pool")

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        """Always None."""
        return None


NO_ANCHOR_POOLS = NoAnchorPools()


class PoolOut(BaseModel):
    """An anchor pool. Once `ready`, revisions are commits, and `sites` and `measurements` are set; once
    `invalid`, `error` says why."""

    id: str
    name: str | None
    state: PoolState
    source: RepoRef
    target: RepoRef
    anchor_count: int
    anchors: list[AnchorSpec]
    sites: int | None = Field(description="Modules that all anchors share, as pairs of both bases.")
    warnings: list[str]
    measurements: dict[str, float] = Field(description="How well the pool predicts its own anchors.")
    error: PublicError | None
    created_at: datetime
    links: dict[str, str]

    @classmethod
    def from_record(cls, pool: PoolRecord) -> PoolOut:
        """Build from a record."""
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
    """One page, newest first. Pass `next_cursor` as `cursor` for the next page; null on the last one."""

    pools: list[PoolOut]
    next_cursor: str | None

    @classmethod
    def from_page(cls, page: PoolPage) -> PoolListOut:
        """Build from a page of records."""
        pools = [PoolOut.from_record(pool) for pool in page.pools]
        return cls.model_construct(pools=pools, next_cursor=page.next_cursor)


def _build_ref(stored: dict[str, Any]) -> RepoRef:
    return RepoRef.model_construct(**stored)


def _build_anchor(stored: dict[str, Any]) -> AnchorSpec:
    source, target = _build_ref(stored["source"]), _build_ref(stored["target"])
    return AnchorSpec.model_construct(source=source, target=target, domain=stored["domain"])
