"""`/subscriptions`: when an owner releases a base, convert these adapters."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.subscriptions import (
    SubscriptionListOut,
    SubscriptionOut,
    SubscriptionRequest,
    check_subscription_request,
)
from rebase.store.records import SubscriptionRecord
from rebase.store.repository import MAX_PAGE
from service.auth import CallerDep
from service.routes.callbacks import check_callback

router = APIRouter(prefix="/subscriptions", tags=["releases"])


class SubscriptionsQuery(BaseModel):
    """Parameters of `GET /subscriptions`."""

    model_config = ConfigDict(extra="forbid")

    cursor: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=50, ge=1, le=MAX_PAGE)


class SubscriptionChange(BaseModel):
    """The body of `PATCH /subscriptions/{id}`."""

    model_config = ConfigDict(extra="forbid")

    paused: bool = Field(description="A paused subscription starts no campaigns.")


@router.post(
    "",
    status_code=201,
    response_model=SubscriptionOut,
    responses={200: {"model": SubscriptionOut, "description": "You already have an identical subscription."}},
)
def subscribe(request: SubscriptionRequest, caller: CallerDep) -> Response:
    """Convert adapters whenever a matching base is released. Repeating the same request changes nothing."""
    check_subscription_request(request)
    if request.callback is not None:
        check_callback(caller, request.callback)
    subscription, created = caller.service.store.subscriptions.create(caller.tenant, request, caller.audit)
    caller.service.scheduler.wake()
    headers = {"Location": f"/subscriptions/{subscription.id}"}
    return _build_response(subscription, 201 if created else 200, headers)


@router.get("", response_model=SubscriptionListOut)
def list_subscriptions(caller: CallerDep, query: Annotated[SubscriptionsQuery, Query()]) -> Response:
    """Your subscriptions, newest first."""
    page = caller.service.store.subscriptions.list(caller.tenant, cursor=query.cursor, limit=query.limit)
    return Response(SubscriptionListOut.from_page(page).model_dump_json(), media_type="application/json")


@router.get("/{subscription_id}", response_model=SubscriptionOut)
def get_subscription(subscription_id: str, caller: CallerDep) -> Response:
    """One subscription."""
    return _build_response(caller.service.store.subscriptions.get(caller.tenant, subscription_id))


@router.patch("/{subscription_id}", response_model=SubscriptionOut)
def change_subscription(subscription_id: str, change: SubscriptionChange, caller: CallerDep) -> Response:
    """Pause or resume. The first poll of the Hub after a pause finds what was released meanwhile."""
    store = caller.service.store
    return _build_response(
        store.subscriptions.set_paused(caller.tenant, subscription_id, change.paused, caller.audit)
    )


@router.delete("/{subscription_id}", status_code=204, response_class=Response)
def unsubscribe(subscription_id: str, caller: CallerDep) -> Response:
    """Delete a subscription. Its campaigns are kept and continue."""
    caller.service.store.subscriptions.delete(caller.tenant, subscription_id, caller.audit)
    return Response(status_code=204)


def _build_response(
    subscription: SubscriptionRecord, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = SubscriptionOut.from_record(subscription).model_dump_json()
    return Response(body, status, headers, "application/json")
