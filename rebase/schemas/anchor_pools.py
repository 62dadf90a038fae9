"""Anchor pools: tasks that have an adapter on both bases, from which a further one is predicted [003].

One shape for `POST /anchor-pools`, for `rebase transfer --pool FILE` and, with every revision a commit, for
what a registered pool keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rebase.errors import NotFound
from rebase.schemas.repos import RepoRef

MIN_ANCHORS = 2
MAX_ANCHORS = 256


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AnchorSpec(_Model):
    """One task's two adapters."""

    source: RepoRef = Field(description="The task's adapter on the pool's source base.")
    target: RepoRef = Field(description="The same task's adapter on the pool's target base.")
    domain: str = Field(
        default="general",
        min_length=1,
        max_length=64,
        pattern=r"^[\w][\w .:/-]*$",
        description="What kind of task it is. A pool of one domain predicts poorly outside of it.",
    )


class PoolRequest(_Model):
    """`POST /anchor-pools`."""

    name: str | None = Field(default=None, min_length=1, max_length=100, description="For people.")
    source: RepoRef
    target: RepoRef
    anchors: tuple[AnchorSpec, ...] = Field(min_length=MIN_ANCHORS, max_length=MAX_ANCHORS)

    @field_validator("name")
    @classmethod
    def _require_printable_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("must be printable text on one line")
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
    """A pool that can be used. `id` is None for one that was never registered: a file on the command line."""

    id: str | None
    spec: PoolRequest


class AnchorPools(Protocol):
    """Where a conversion finds the pools of its tenant."""

    def get(self, pool_id: str) -> Pool:
        """A pool by its id. Raises NotFound, or StateConflict while it is not ready."""

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        """The newest ready pool from the one base repo to the other, if there is any."""


class NoAnchorPools:
    """For runs that have none."""

    def get(self, pool_id: str) -> Pool:
        """There is none by any name."""
        raise NotFound(f"There is no anchor pool '{pool_id}' here.", pointer="/method/pool")

    def find_for_bases(self, source_repo: str, target_repo: str) -> Pool | None:
        """There is none."""
        return None


NO_ANCHOR_POOLS = NoAnchorPools()
