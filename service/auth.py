"""Who is calling, and may they: the tenant behind a key, or `default` in a deployment without keys.

One dependency gives an endpoint both the service and the tenant: FastAPI resolves dependencies anew for every
request, and each further one costs as much as validating the body.

Every endpoint says what it needs by the dependency that it takes: `CallerDep` asks for `read` where it is
only looked and for `convert` else, `AdminDep` for `admin`. A test finds routes that take neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.concurrency import run_in_threadpool

from rebase.errors import Busy, Forbidden, RateLimited, Unauthorized
from rebase.logging import get_logger
from rebase.schemas.api_keys import Scope
from rebase.store.api_keys import Identity
from rebase.store.audit import AuditContext, anonymize_address, write_audit_event
from rebase.store.job_events import SubmissionContext
from rebase.store.limits import Limits
from rebase.store.tables.base import DEFAULT_TENANT
from service.rates import headers_of
from service.state import Service

log = get_logger("auth")

# How OpenAPI describes it; `service.app` puts it into the schema.
SCHEME = {"type": "http", "scheme": "bearer", "description": "An API key, where the deployment asks for one."}


@dataclass(frozen=True, slots=True)
class Caller:
    """The service and the tenant on whose behalf it is to act. `trail`: how the audit log names the
    caller."""

    service: Service
    tenant: str
    scope: Scope
    limits: Limits
    trail: AuditContext

    @property
    def extras(self) -> SubmissionContext:
        """What goes with a job that is submitted. Without keys there is one caller, of whom the jobs
        themselves say as much as a line in the audit log would."""
        keyed = self.trail.key_id is not None
        return SubmissionContext(limits=self.limits, audit=self.trail if keyed else None)


async def _caller(request: Request) -> Caller:
    return await _authorised(request, get_required_scope(request.method))


async def _admin(request: Request) -> Caller:
    return await _authorised(request, Scope.ADMIN)


async def _authorised(request: Request, needed: Scope) -> Caller:
    service: Service = request.app.state.service
    if service.settings.auth == "none":
        limits = await service.known_limits.of(service.store, DEFAULT_TENANT)
        return Caller(service, DEFAULT_TENANT, Scope.ADMIN, limits, _trail(request, DEFAULT_TENANT, None))
    known = await _identified(request, service)
    trail = _trail(request, known.tenant_id, known.key_id)
    await _count(request, service, known)
    if not known.scope.allows(needed):
        await _note_denied(service, request, trail)
        raise Forbidden(
            f"This needs a key with scope '{needed.value}'; yours has '{known.scope.value}'.",
            hint=f"Use a key with scope '{needed.value}', or ask an admin of your tenant for one.",
        )
    return Caller(service, known.tenant_id, known.scope, known.limits, trail)


async def _identified(request: Request, service: Service) -> Identity:
    """Raises Unauthorised."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthorized(
            "This service asks for an API key.", hint="Send the header 'Authorization: Bearer rb_…'."
        )
    known = await service.known_keys.identify(service.store, key.strip())
    if known is None:
        raise Unauthorized("This API key is not valid.", hint="Make one with 'rebase keys create'.")
    check_alive(known, service.store.clock())
    return known


def check_alive(known: Identity, now: datetime) -> None:
    """Raises Unauthorised for a key that has ended. Only who has the key learns that it once was one."""
    ended = known.revoked_at is not None or (known.expires_at is not None and known.expires_at <= now)
    if ended:
        how = "was revoked" if known.revoked_at is not None else "has expired"
        raise Unauthorized(f"This API key {how}.", hint="Ask an admin of your tenant for another one.")


async def _count(request: Request, service: Service, known: Identity) -> None:
    """One request more of this tenant. The figures go out with whatever is answered. Raises RateLimited."""
    most = known.limits.requests_per_minute
    if most is None:
        return
    taken = await service.rates.take(known.tenant_id, most)
    state: dict[str, Any] = request.scope.setdefault("state", {})
    state["headers"] = headers_of(taken)
    if not taken.allowed:
        raise RateLimited(
            f"This tenant may make {most} requests a minute.",
            hint="Slow down; Retry-After says how long to wait.",
            retry_after_s=taken.retry_after_s,
        )


def _trail(request: Request, tenant: str, key_id: str | None) -> AuditContext:
    client = request.client.host if request.client is not None else None
    request_id: str | None = request.scope.get("state", {}).get("request_id")
    return AuditContext(tenant, key_id, request_id, anonymize_address(client))


async def _note_denied(service: Service, request: Request, trail: AuditContext) -> None:
    """A line in the audit log, at most one a minute for a key. Trouble with it changes no answer."""
    if trail.key_id is None or not service.denials.due(trail.key_id):
        return
    about = f"{request.method} {request.scope['route'].path}"
    try:
        await run_in_threadpool(_write_denied, service, trail, about)
    except Busy:
        log.warning("denied_attempt_not_noted", exc_info=True)


def _write_denied(service: Service, trail: AuditContext, about: str) -> None:
    with service.store.db.write() as connection:
        write_audit_event(connection, service.store.clock(), trail, "request.denied", about, "denied")


CallerDep = Annotated[Caller, Depends(_caller)]
AdminDep = Annotated[Caller, Depends(_admin)]


def declared_scopes(app: FastAPI) -> dict[tuple[str, str], Scope | None]:
    """(verb, path) of every route → what it needs, read from its dependencies; None: it declares nothing."""
    found: dict[tuple[str, str], Scope | None] = {}
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        calls = _calls_of(dependant) if dependant is not None else set()
        for method in route.methods or ():
            own = get_required_scope(method) if _caller in calls else None
            found[method, str(route.path)] = Scope.ADMIN if _admin in calls else own
    return found


def _calls_of(dependant: Any) -> set[Any]:
    found = {dependant.call}
    for inner in dependant.dependencies:
        found |= _calls_of(inner)
    return found


# What a key may do. Each scope implies those before it.

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def get_required_scope(method: str) -> Scope:
    """What an endpoint needs that says nothing more: looking needs `read`, everything else `convert`."""
    return Scope.READ if method.upper() in _SAFE_METHODS else Scope.CONVERT
