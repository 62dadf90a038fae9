"""Callbacks: deliveries with their attempts, replay, signing secrets. `service.callbacks` sends them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.logging import get_logger
from rebase.schemas.callback_policy import Allowlist
from rebase.schemas.callbacks import (
    CallbackSpec,
    DeliveryListOut,
    DeliveryOut,
    DeliveryState,
    NewSecretOut,
    SecretListOut,
    SecretOut,
)
from rebase.store.deliveries import DeliveryRepository
from rebase.store.repository import MAX_PAGE
from rebase.store.signing_secrets import SigningSecretRepository
from rebase.store.vault import Vault
from service.auth import AdminDep, Caller, CallerDep
from service.callbacks.ssrf_guard import check_callback_url

log = get_logger("callbacks")

router = APIRouter(tags=["callbacks"])

_MAX_OVERLAP_S = 30 * 24 * 3600


class DeliveriesQuery(BaseModel):
    """Parameters of `GET /deliveries`. Unknown ones are rejected: ignoring a typo would list everything."""

    model_config = ConfigDict(extra="forbid")

    state: DeliveryState | None = None
    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


class RotateRequest(BaseModel):
    """How to rotate a secret."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: int | None = Field(
        default=None,
        strict=True,  # `false` is not a duration
        ge=0,
        le=_MAX_OVERLAP_S,
        description="How long the previous secret keeps signing; null: the deployment's default.",
    )


@router.get("/jobs/{job_id}/deliveries", response_model=DeliveryListOut)
def job_deliveries(job_id: str, caller: CallerDep) -> Response:
    """A job's callbacks, oldest first, each with every attempt. All are on one page."""
    deliveries = _get_delivery_repository(caller).list_for_job(caller.tenant, job_id)
    view = DeliveryListOut.model_construct(
        deliveries=[DeliveryOut.from_record(delivery) for delivery in deliveries], next_cursor=None
    )
    return _build_response(view)


@router.get("/deliveries", response_model=DeliveryListOut)
def list_deliveries(caller: CallerDep, query: Annotated[DeliveriesQuery, Query()]) -> Response:
    """Your callbacks, newest first."""
    page = _get_delivery_repository(caller).list_deliveries(
        caller.tenant, state=query.state, cursor=query.cursor, limit=query.limit
    )
    return _build_response(DeliveryListOut.from_page(page))


@router.get("/deliveries/{delivery_id}", response_model=DeliveryOut)
def get_delivery(delivery_id: str, caller: CallerDep) -> Response:
    """One callback with every attempt."""
    return _build_response(
        DeliveryOut.from_record(_get_delivery_repository(caller).get(caller.tenant, delivery_id))
    )


@router.post(
    "/deliveries/{delivery_id}/replay",
    status_code=202,
    response_model=DeliveryOut,
    response_description="Accepted.",
)
def replay_delivery(delivery_id: str, caller: CallerDep) -> Response:
    """Send it again now, under the same `webhook-id`, even to a receiver that had answered 410."""
    return _build_response(
        DeliveryOut.from_record(
            _get_delivery_repository(caller).replay(caller.tenant, delivery_id, caller.audit)
        ),
        202,
    )


@router.get("/callback-secrets", response_model=SecretListOut)
def list_secrets(caller: CallerDep) -> Response:
    """Your signing secrets with ids and dates; never the secrets themselves."""
    secrets = _get_secret_repository(caller).list_signing(caller.tenant)
    return _build_response(
        SecretListOut.model_construct(secrets=[SecretOut.from_record(secret) for secret in secrets])
    )


@router.post(
    "/callback-secrets", status_code=201, response_model=NewSecretOut, response_description="Created."
)
def rotate_secret(caller: AdminDep, request: RotateRequest | None = None) -> Response:
    """Create a signing secret and return it, once. The previous one keeps signing for a while."""
    settings = caller.service.settings
    requested_s = request.overlap_s if request is not None else None
    overlap_s = settings.callback_secret_overlap_s if requested_s is None else requested_s
    record, secret = _get_secret_repository(caller).rotate(
        Vault.from_settings(settings), caller.tenant, overlap_s, caller.audit
    )
    log.info("signing_secret_made", tenant=caller.tenant, secret_id=record.id)
    view = NewSecretOut.model_construct(
        id=record.id, created_at=record.created_at, retires_at=record.retires_at, secret=secret
    )
    return _build_response(view, 201, {"Cache-Control": "no-store"})


def check_callback(caller: Caller, callback: CallbackSpec) -> None:
    """Check that this deployment may call the URL and that the tenant has a signing secret. Raises
    RequestInvalid, StateConflict."""
    check_callback_url(callback.url, Allowlist.parse(caller.service.settings.callback_allow))
    _get_secret_repository(caller).require_secret(caller.tenant)


def _get_delivery_repository(caller: Caller) -> DeliveryRepository:
    return DeliveryRepository(caller.service.store.db, caller.service.store.clock)


def _get_secret_repository(caller: Caller) -> SigningSecretRepository:
    return SigningSecretRepository(caller.service.store.db, caller.service.store.clock)


def _build_response(view: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(view.model_dump_json(), status, headers, "application/json")
