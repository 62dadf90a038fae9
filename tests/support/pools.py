"""Anchor pools to register, and the worker that registers them as a test wants."""

from __future__ import annotations

from typing import Any

from rebase.schemas.anchor_pools import PoolRequest
from rebase.store.store import Store

OLD, NEW = "acme/base-1", "acme/base-2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pool_body(count: int = 3, **changes: Any) -> dict[str, Any]:
    """The body of `POST /anchor-pools`; `changes` replace its top-level fields."""
    anchors = [
        {
            "source": {"repo_id": f"acme/task-{number}-old"},
            "target": {"repo_id": f"acme/task-{number}-new"},
            "domain": ("sql", "chat")[number % 2],
        }
        for number in range(count)
    ]
    return {"source": {"repo_id": OLD}, "target": {"repo_id": NEW}, "anchors": anchors} | changes


def a_pool(count: int = 3, **changes: Any) -> PoolRequest:
    """The same as a request."""
    return PoolRequest.model_validate(pool_body(count, **changes))


def pinned(request: dict[str, Any]) -> dict[str, Any]:
    """A dump of a PoolRequest in which every revision is a commit."""
    document = PoolRequest.model_validate(request).model_dump(mode="json")
    anchored = [anchor[side] for anchor in document["anchors"] for side in ("source", "target")]
    for ref in (document["source"], document["target"], *anchored):
        ref["revision"] = COMMIT
    return document


def finish_pool(store: Store, pool_id: str, **changes: Any) -> None:
    """Be the worker that finds the pool good."""
    claim = store.queue.claim(pool_id, "worker", 60)
    assert claim is not None
    found = {
        "pool": pinned(claim.request.model_dump(mode="json")),
        "sites": 14,
        "warnings": ["acme/task-0-old names another base."],
        "measurements": {"loo_error": 0.25},
    }
    store.queue.succeed(claim, found | changes)
