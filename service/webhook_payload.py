"""The Hub's webhook payload, version 3, as far as it matters here; whatever else it says is let through.

Every field may be missing, null or of another kind than today: then it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rebase.errors import RequestInvalid
from rebase.schemas.repos import check_repo_id
from rebase.schemas.subscriptions import MAIN_REF
from rebase.store.records import ReleaseEvent

_LONGEST = 100  # of ids
_SHA_LENGTH = 64
_CONTENT = frozenset({"repo", "repo.content"})
_KNOWN_SCOPES = frozenset({"repo", "repo.content", "repo.config", "discussion", "discussion.comment"})


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing to do, and why."""

    reason: str
    detail: str


def read(body: bytes) -> Mapping[str, Any]:
    """The payload as an object. Raises RequestInvalid for anything else."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise RequestInvalid("The webhook's body is not valid JSON.") from exc
    if not isinstance(payload, dict):
        raise RequestInvalid("The webhook's body is not a JSON object.")
    return payload


def release_in(payload: Mapping[str, Any]) -> ReleaseEvent | Ignored:
    """What the payload says of the main branch of a model."""
    event, repo = _part(payload, "event"), _part(payload, "repo")
    if repo.get("type") != "model":
        return Ignored("not_a_model", "Only model repos are followed.")
    if _scope(event.get("scope")) not in _CONTENT:
        return Ignored("scope", "Only changes of a repo's content are followed.")
    if event.get("action") not in ("create", "update"):
        return Ignored("action", "Only new repos and pushes are followed.")
    name = _text(repo.get("name"))
    try:
        check_repo_id(name)
    except ValueError:
        return Ignored("repo_name", "The payload names no repo.")
    new = event.get("action") == "create" and _scope(event.get("scope")) == "repo"
    sha = _pushed(payload)
    if sha is None and new and not payload.get("updatedRefs"):
        sha = _text(repo.get("headSha"))[:_SHA_LENGTH]  # perhaps none yet
    if sha is None:
        return Ignored("not_main", "Nothing was pushed to the branch main.")
    webhook_id, repo_id = _text(_part(payload, "webhook").get("id")), _text(repo.get("id"))
    return ReleaseEvent(name, MAIN_REF, sha, "webhook", webhook_id or None, repo_id or None, new_repo=new)


def _pushed(payload: Mapping[str, Any]) -> str | None:
    """The commit that main was moved to."""
    updated = payload.get("updatedRefs")
    for ref in updated if isinstance(updated, list) else ():
        if isinstance(ref, dict) and ref.get("ref") == MAIN_REF and _text(ref.get("newSha")):
            return _text(ref.get("newSha"))[:_SHA_LENGTH]
    return None


def _scope(value: Any) -> str:
    """A scope that is not known counts as the known one that it lies in."""
    scope = _text(value)
    while scope and scope not in _KNOWN_SCOPES:
        scope = scope.rpartition(".")[0]
    return scope


def _part(payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = payload.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Short printable text, as names and ids are; anything else says nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**20 else ""
    return value[:_LONGEST] if isinstance(value, str) and value.isprintable() else ""
