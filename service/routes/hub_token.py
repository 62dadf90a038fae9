"""Hub tokens: sent with one request in a header, or stored for the tenant. They are never returned."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.responses import Response

from rebase.errors import RequestInvalid
from rebase.schemas.tenants import HubTokenOut
from rebase.store.hub_tokens import (
    HUB_TOKEN_HEADER,
    MAX_TOKEN_LENGTH,
    JobTokenEncryptor,
    check_hub_token,
    delete_tenant_token,
    get_token_updated_at,
    put_tenant_token,
)
from rebase.store.job_events import SubmissionContext
from rebase.store.vault import Vault
from service.auth import AdminDep, Caller

router = APIRouter(prefix="/hub-token", tags=["tenant"])

JobHubToken = Annotated[
    str | None,
    Header(
        alias=HUB_TOKEN_HEADER,
        description="A Hub token for this job alone: encrypted while the job lasts, then deleted. Without "
        "it, the job uses the token stored for the tenant.",
    ),
]


class HubTokenBody(BaseModel):
    """`PUT /hub-token`."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    token: SecretStr = Field(min_length=1, max_length=MAX_TOKEN_LENGTH)


def build_submission_context(caller: Caller, hub_token: str | None) -> SubmissionContext:
    """What accompanies this caller's job. Raises RequestInvalid for an invalid token header, and
    SettingsInvalid if the deployment has no key to encrypt it with."""
    if hub_token is None:
        return caller.submission_context
    try:
        token = check_hub_token(hub_token)
    except RequestInvalid as exc:
        exc.message = f"{HUB_TOKEN_HEADER}: {exc.message}"
        raise
    return replace(
        caller.submission_context,
        encrypt_token=JobTokenEncryptor(Vault.from_settings(caller.service.settings), token).encrypt,
    )


@router.put("", response_model=HubTokenOut)
def put_hub_token(body: HubTokenBody, caller: AdminDep) -> HubTokenOut:
    """Store the token that your jobs use to read and write on the Hub, replacing an earlier one."""
    service = caller.service
    put_tenant_token(
        service.store,
        Vault.from_settings(service.settings),
        caller.tenant,
        body.token.get_secret_value(),
        caller.audit,
    )
    return HubTokenOut(stored=True, updated_at=get_token_updated_at(service.store, caller.tenant))


@router.get("", response_model=HubTokenOut)
def get_hub_token(caller: AdminDep) -> HubTokenOut:
    """Whether a token is stored. The token itself is never shown."""
    updated_at = get_token_updated_at(caller.service.store, caller.tenant)
    return HubTokenOut(stored=updated_at is not None, updated_at=updated_at)


@router.delete("", status_code=204, response_class=Response)
def delete_hub_token(caller: AdminDep) -> Response:
    """Delete the stored token. Jobs that start later run without it."""
    delete_tenant_token(caller.service.store, caller.tenant, caller.audit)
    return Response(status_code=204)
