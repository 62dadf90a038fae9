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
from service.webhook_payload import IgnoredEvent, extract_release, parse_payload

router = APIRouter(tags=["releases"])

_DETAIL_BY_REASON = {
    "duplicate": "This push was recorded before.",
    "own_push": "A job of this deployment made this push.",
    "no_subscription": "No subscription means this repo.",
}


class WebhookOut(BaseModel):
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
    """Raises WebhookOff and WebhookUnauthorised. Takes as long for a secret that is nearly right as for any
    other, and looks at all of them."""
    configured = settings.webhook_secret.get_secret_value() if settings.webhook_secret is not None else ""
    secrets = [secret.strip() for secret in configured.split(",") if secret.strip()]
    if not secrets:
        raise WebhookNotConfigured(
            "The webhook of this service is not set up.",
            hint="Set REBASE_WEBHOOK_SECRET to the secret that the Hub is told when the webhook is made.",
        )
    # Compared as bytes: headers may hold what text comparison refuses.
    comparisons = [hmac.compare_digest(secret.encode(), presented.encode("latin-1")) for secret in secrets]
    if not any(comparisons):
        raise WebhookUnauthorized(
            "The webhook's secret is missing or wrong.",
            hint="Send it in X-Webhook-Secret; it is the one in REBASE_WEBHOOK_SECRET.",
        )


def _build_response(body: WebhookOut) -> Response:
    return Response(body.model_dump_json(), 202, media_type="application/json")
