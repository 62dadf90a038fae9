"""Who is calling: the tenant behind a key, or `default` in a deployment without keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from core.errors import Unauthorised
from core.tables import DEFAULT_TENANT
from service.state import ServiceDep

_bearer = HTTPBearer(auto_error=False, description="An API key (`rb_…`), where the deployment asks for one.")


async def _tenant(
    service: ServiceDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    if service.settings.auth == "none":
        return DEFAULT_TENANT
    if credentials is None:
        raise Unauthorised(
            "This service asks for an API key.", hint="Send the header 'Authorization: Bearer rb_…'."
        )
    tenant = await service.known_keys.tenant_of(service.store, credentials.credentials)
    if tenant is None:
        raise Unauthorised("This API key is not valid.", hint="Make one with 'rebase keys create'.")
    return tenant


TenantDep = Annotated[str, Depends(_tenant)]
