"""Who is calling: the tenant behind a key, or `default` in a deployment without keys.

One dependency gives an endpoint both the service and the tenant: FastAPI resolves dependencies anew for every
request, and each further one costs as much as validating the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from core.errors import Unauthorised
from core.tables import DEFAULT_TENANT
from service.state import Service

# How OpenAPI describes it; `service.app` puts it into the schema.
SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key, where the deployment asks for one."}


@dataclass(frozen=True, slots=True)
class Caller:
    """The service and the tenant on whose behalf it is to act."""

    service: Service
    tenant: str


async def _caller(request: Request) -> Caller:
    service: Service = request.app.state.service
    if service.settings.auth == "none":
        return Caller(service, DEFAULT_TENANT)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthorised(
            "This service asks for an API key.", hint="Send the header 'Authorization: Bearer rb_…'."
        )
    tenant = await service.known_keys.tenant_of(service.store, key.strip())
    if tenant is None:
        raise Unauthorised("This API key is not valid.", hint="Make one with 'rebase keys create'.")
    return Caller(service, tenant)


CallerDep = Annotated[Caller, Depends(_caller)]
