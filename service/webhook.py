"""`POST /webhooks/hub`: the Hub tells of a push. One transaction, an answer; the work is queued."""

from __future__ import annotations

import hmac
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from rebase.errors import WebhookNotConfigured, WebhookUnauthorized
from rebase.settings import Settings
from rebase.store.records import ReleaseEvent
from service.state import ServiceDep
from service.webhook_payload import Ignored, read, release_in

router = APIRouter(tags=["releases"])

_REASONS = {
    "duplicate": "This push was recorded before.",
    "own_push": "A job of this deployment made this push.",
    "no_subscription": "No subscription means this repo.",
}


class WebhookAnswer(BaseModel):
    """What became of a delivery. Every one that can be read is accepted; the Hub need not send it again."""

    status: Literal["recorded", "ignored"]
    reason: str | None = Field(
        description="Of one that was ignored: not_a_model, scope, action, repo_name, not_main, duplicate, "
        "own_push, no_subscription."
    )
    detail: str | None


@router.post(
    "/webhooks/hub",
    status_code=202,
    response_model=WebhookAnswer,
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
        check_secret(service.settings, request.headers.get("x-webhook-secret", ""))
        found = release_in(read(await request.body()))
        if isinstance(found, ReleaseEvent):
            status = await run_in_threadpool(service.store.releases.record, found)
            found = Ignored(status, _REASONS[status]) if status != "recorded" else found
        outcome = found.reason if isinstance(found, Ignored) else "recorded"
    finally:
        service.metrics.releases.delivered(outcome)
    if isinstance(found, Ignored):
        return _answer(WebhookAnswer(status="ignored", reason=found.reason, detail=found.detail))
    service.keeper.wake()
    return _answer(WebhookAnswer(status="recorded", reason=None, detail=None))


def check_secret(settings: Settings, given: str) -> None:
    """Raises WebhookOff and WebhookUnauthorised. Takes as long for a secret that is nearly right as for any
    other, and looks at all of them."""
    kept = settings.webhook_secret.get_secret_value() if settings.webhook_secret is not None else ""
    secrets = [secret.strip() for secret in kept.split(",") if secret.strip()]
    if not secrets:
        raise WebhookNotConfigured(
            "The webhook of this service is not set up.",
            hint="Set REBASE_WEBHOOK_SECRET to the secret that the Hub is told when the webhook is made.",
        )
    # Compared as bytes: headers may hold what text comparison refuses.
    matches = [hmac.compare_digest(secret.encode(), given.encode("latin-1")) for secret in secrets]
    if not any(matches):
        raise WebhookUnauthorized(
            "The webhook's secret is missing or wrong.",
            hint="Send it in X-Webhook-Secret; it is the one in REBASE_WEBHOOK_SECRET.",
        )


def _answer(answer: WebhookAnswer) -> Response:
    return Response(answer.model_dump_json(), 202, media_type="application/json")
