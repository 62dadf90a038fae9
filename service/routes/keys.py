"""`/keys`: a tenant's admin creates, lists, rotates and revokes its API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rebase.schemas.api_keys import KeyListOut, KeyOut, NewKeyOut, Scope
from rebase.store import api_keys as keys
from service.auth import AdminDep

router = APIRouter(prefix="/keys", tags=["tenant"])

_MIN_LIFETIME_S = int(keys.MIN_LIFETIME.total_seconds())
_MAX_LIFETIME_S = int(keys.MAX_LIFETIME.total_seconds())
KeyId = Annotated[str, Path(max_length=64)]


class KeyRequest(BaseModel):
    """`POST /keys`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="key", min_length=1, max_length=200, description="A display name.")
    scope: Scope = Scope.CONVERT
    expires_in_s: int | None = Field(
        default=None, ge=_MIN_LIFETIME_S, le=_MAX_LIFETIME_S, description="Null: it never expires."
    )


class RotationRequest(BaseModel):
    """`POST /keys/{id}/rotate`."""

    model_config = ConfigDict(extra="forbid")

    overlap_s: int = Field(
        default=int(keys.DEFAULT_OVERLAP.total_seconds()),
        ge=0,
        le=_MAX_LIFETIME_S,
        description="How long the old key keeps working.",
    )


@router.post("", status_code=201, response_model=NewKeyOut)
def create_key(request: KeyRequest, caller: AdminDep) -> NewKeyOut:
    """Create a key for your tenant. It is shown only once."""
    lifetime = timedelta(seconds=request.expires_in_s) if request.expires_in_s is not None else None
    new_key = keys.issue_key(
        caller.service.store, caller.tenant, request.name, request.scope, lifetime, caller.audit
    )
    return _build_new_key(new_key)


@router.get("", response_model=KeyListOut)
def list_keys(caller: AdminDep) -> KeyListOut:
    """The keys of your tenant."""
    return KeyListOut(
        keys=[KeyOut.from_record(key) for key in keys.list_keys(caller.service.store, caller.tenant)]
    )


@router.post("/{key_id}/rotate", status_code=201, response_model=NewKeyOut)
def rotate_key(key_id: KeyId, caller: AdminDep, request: RotationRequest | None = None) -> NewKeyOut:
    """Create a key with the same name, scope and lifetime. The old one keeps working for a while and cannot
    be rotated again."""
    overlap = timedelta(seconds=(request or RotationRequest()).overlap_s)
    new_key = keys.rotate_key(caller.service.store, key_id, overlap, tenant=caller.tenant, audit=caller.audit)
    return _build_new_key(new_key)


@router.delete("/{key_id}", status_code=204, response_class=Response)
def revoke_key(key_id: KeyId, caller: AdminDep) -> Response:
    """Revoke a key; takes effect everywhere within ten seconds."""
    keys.revoke_key(caller.service.store, key_id, tenant=caller.tenant, audit=caller.audit)
    return Response(status_code=204)


def _build_new_key(new_key: keys.NewKey) -> NewKeyOut:
    return NewKeyOut(key=new_key.key, **KeyOut.from_record(new_key.record).model_dump())
