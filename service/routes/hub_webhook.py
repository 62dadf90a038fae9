"""The Hub's webhook (payload version 3): check the secret, extract the release, record it.

Any field of the payload may be missing, null or of an unexpected type; it is then ignored, as are unknown
fields.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from rebase.errors import RequestInvalid, WebhookNotConfigured, WebhookUnauthorized
from rebase.schemas.repos import check_repo_id
from rebase.schemas.subscriptions import MAIN_REF
from rebase.settings import Settings
from rebase.store.records import ReleaseEvent
from service.deps import ServiceDep

_MAX_TEXT_LENGTH = 100  # for ids
_MAX_SHA_LENGTH = 64
_CONTENT_SCOPES = frozenset({"repo", "repo.content"})
_KNOWN_SCOPES = frozenset({"repo", "repo.content", "repo.config", "discussion", "discussion.comment"})


@dataclass(frozen=True, slots=True)
class IgnoredEvent:
    """A payload that needs no action, and why."""

    reason: str
    detail: str


def parse_payload(body: bytes) -> Mapping[str, Any]:
    """The payload as an object. Raises RequestInvalid for anything else."""
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise RequestInvalid("The webhook's body is not valid JSON.") from exc
    if not isinstance(payload, dict):
        raise RequestInvalid("The webhook's body is not a JSON object.")
    return payload


def extract_release(payload: Mapping[str, Any]) -> ReleaseEvent | IgnoredEvent:
    """What the payload says about the main branch of a model."""
    event, repo = _get_object(payload, "event"), _get_object(payload, "repo")
    if repo.get("type") != "model":
        return IgnoredEvent("not_a_model", "Only events about model repos are handled.")
    if _normalize_scope(event.get("scope")) not in _CONTENT_SCOPES:
        return IgnoredEvent("scope", "Only events about a repo's content are handled.")
    if event.get("action") not in ("create", "update"):
        return IgnoredEvent("action", "Only new repos and pushes are handled.")
    name = _to_text(repo.get("name"))
    try:
        check_repo_id(name)
    except ValueError:
        return IgnoredEvent("repo_name", "The payload names no repo.")
    is_new_repo = event.get("action") == "create" and _normalize_scope(event.get("scope")) == "repo"
    sha = _find_pushed_sha(payload)
    if sha is None and is_new_repo and not payload.get("updatedRefs"):
        sha = _to_text(repo.get("headSha"))[:_MAX_SHA_LENGTH]  # may be empty
    if sha is None:
        return IgnoredEvent("not_main", "Nothing was pushed to the branch main.")
    webhook_id, repo_id = _to_text(_get_object(payload, "webhook").get("id")), _to_text(repo.get("id"))
    return ReleaseEvent(
        name, MAIN_REF, sha, "webhook", webhook_id or None, repo_id or None, new_repo=is_new_repo
    )


def _find_pushed_sha(payload: Mapping[str, Any]) -> str | None:
    """The new commit of main."""
    updated_refs = payload.get("updatedRefs")
    for ref in updated_refs if isinstance(updated_refs, list) else ():
        if isinstance(ref, dict) and ref.get("ref") == MAIN_REF and _to_text(ref.get("newSha")):
            return _to_text(ref.get("newSha"))[:_MAX_SHA_LENGTH]
    return None


def _normalize_scope(value: Any) -> str:
    """Map an unknown scope to the known one that contains it."""
    scope = _to_text(value)
    while scope and scope not in _KNOWN_SCOPES:
        scope = scope.rpartition(".")[0]
    return scope


def _get_object(payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = payload.get(key)
    return value if isinstance(value, dict) else {}


def _to_text(value: Any) -> str:
    """Short printable text, such as names and ids; empty for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**20 else ""
    return value[:_MAX_TEXT_LENGTH] if isinstance(value, str) and value.isprintable() else ""


router = APIRouter(tags=["releases"])

_DETAIL_BY_REASON = {
    "duplicate": "This push is already recorded.",
    "own_push": "A job of this deployment made this push.",
    "no_subscription": "No subscription matches this repo.",
}


class WebhookOut(BaseModel):
    """The result for a delivery. Every readable one is accepted; the Hub need not send it again."""

    status: Literal["recorded", "ignored"]
    reason: str | None = Field(
        description="If it was ignored: not_a_model, scope, action, repo_name, not_main, duplicate, "
        "own_push, no_subscription."
    )
    detail: str | None


@router.post(
    "/webhooks/hub",
    status_code=202,
    response_model=WebhookOut,
    openapi_extra={
        "parameters": [
            {"name": "X-Webhook-Secret", "in": "header", "required": True, "schema": {"type": "string"}}
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "security": [],
    },
)
async def hub_webhook(request: Request, service: ServiceDep) -> Response:
    """For the Hub (payload version 3): a push to a model. The repo is read anew before anything is done."""
    outcome = "refused"
    try:
        require_webhook_secret(service.settings, request.headers.get("x-webhook-secret", ""))
        event = extract_release(parse_payload(await request.body()))
        if isinstance(event, ReleaseEvent):
            status = await run_in_threadpool(service.store.releases.record, event)
            event = IgnoredEvent(status, _DETAIL_BY_REASON[status]) if status != "recorded" else event
        outcome = event.reason if isinstance(event, IgnoredEvent) else "recorded"
    finally:
        service.metrics.releases.record_webhook(outcome)
    if isinstance(event, IgnoredEvent):
        return _build_response(WebhookOut(status="ignored", reason=event.reason, detail=event.detail))
    service.scheduler.wake()
    return _build_response(WebhookOut(status="recorded", reason=None, detail=None))


def require_webhook_secret(settings: Settings, presented: str) -> None:
    """Raises WebhookNotConfigured and WebhookUnauthorized. Compares with every secret in constant time."""
    configured = settings.webhook_secret.get_secret_value() if settings.webhook_secret is not None else ""
    secrets = [secret.strip() for secret in configured.split(",") if secret.strip()]
    if not secrets:
        raise WebhookNotConfigured(
            "The Hub webhook of this service is not configured.",
            hint=(
                "Set REBASE_WEBHOOK_SECRET to the secret that you enter on the Hub when you create the "
                "webhook."
            ),
        )
    # Compare bytes: headers may contain characters that text comparison rejects.
    comparisons = [hmac.compare_digest(secret.encode(), presented.encode("latin-1")) for secret in secrets]
    if not any(comparisons):
        raise WebhookUnauthorized(
            "The webhook's secret is missing or wrong.",
            hint="Send the secret from REBASE_WEBHOOK_SECRET in the header X-Webhook-Secret.",
        )


def _build_response(body: WebhookOut) -> Response:
    return Response(body.model_dump_json(), 202, media_type="application/json")
