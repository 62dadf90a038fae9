"""Authentication and authorisation: the tenant of an API key, or `default` in a deployment without keys.

A single dependency gives an endpoint both the service and the tenant: FastAPI resolves dependencies for every
request, and each one costs as much as validating the body.

Every endpoint declares the scope it needs by its dependency: `CallerDep` requires `read` for safe methods and
`convert` for others, `AdminDep` requires `admin`. A test finds routes that use neither.
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
from service.deps import AppState
from service.rate_limit import build_rate_limit_headers

log = get_logger("auth")

# For the OpenAPI schema; `service.app` adds it.
SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, where the deployment asks for one.",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The service and the tenant that the request acts for. `audit`: the caller as recorded in the audit
    log."""

    service: AppState
    tenant: str
    scope: Scope
    limits: Limits
    audit: AuditContext

    @property
    def submission_context(self) -> SubmissionContext:
        """What accompanies a submitted job. Without keys there is only one caller, so an audit event would
        add nothing to the jobs themselves."""
        has_key = self.audit.key_id is not None
        return SubmissionContext(limits=self.limits, audit=self.audit if has_key else None)


async def _get_caller(request: Request) -> Caller:
    return await _authorize(request, get_required_scope(request.method))


async def _get_admin(request: Request) -> Caller:
    return await _authorize(request, Scope.ADMIN)


async def _authorize(request: Request, required: Scope) -> Caller:
    service: AppState = request.app.state.service
    if service.settings.auth == "none":
        limits = await service.limits_cache.get(service.store, DEFAULT_TENANT)
        return Caller(
            service, DEFAULT_TENANT, Scope.ADMIN, limits, _build_audit_context(request, DEFAULT_TENANT, None)
        )
    identity = await _authenticate(request, service)
    audit = _build_audit_context(request, identity.tenant_id, identity.key_id)
    await _count_request(request, service, identity)
    if not identity.scope.allows(required):
        await _audit_denied_request(service, request, audit)
        raise Forbidden(
            f"This requires a key with scope '{required.value}'; yours has '{identity.scope.value}'.",
            hint=f"Use a key with scope '{required.value}', or ask an admin of your tenant for one.",
        )
    return Caller(service, identity.tenant_id, identity.scope, identity.limits, audit)


async def _authenticate(request: Request, service: AppState) -> Identity:
    """The identity behind the request's key. Raises Unauthorized."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthorized(
            "This service requires an API key.", hint="Send the header 'Authorization: Bearer rb_…'."
        )
    identity = await service.key_cache.identify(service.store, key.strip())
    if identity is None:
        raise Unauthorized("This API key is not valid.", hint="Create one with 'rebase keys create'.")
    require_active_key(identity, service.store.clock())
    return identity


def require_active_key(identity: Identity, now: datetime) -> None:
    """Raises Unauthorized for a key that has expired or was revoked. Only its holder can see this."""
    is_inactive = identity.revoked_at is not None or (
        identity.expires_at is not None and identity.expires_at <= now
    )
    if is_inactive:
        cause = "was revoked" if identity.revoked_at is not None else "has expired"
        raise Unauthorized(f"This API key {cause}.", hint="Ask an admin of your tenant for another one.")


async def _count_request(request: Request, service: AppState, identity: Identity) -> None:
    """Count a request against the tenant's rate limit, whose state goes out with the response. Raises
    RateLimited."""
    limit = identity.limits.requests_per_minute
    if limit is None:
        return
    result = await service.rate_limiter.take(identity.tenant_id, limit)
    state: dict[str, Any] = request.scope.setdefault("state", {})
    state["headers"] = build_rate_limit_headers(result)
    if not result.allowed:
        raise RateLimited(
            f"This tenant is limited to {limit} requests per minute.",
            hint="Send fewer requests; Retry-After says how long to wait.",
            retry_after_s=result.retry_after_s,
        )


def _build_audit_context(request: Request, tenant: str, key_id: str | None) -> AuditContext:
    client = request.client.host if request.client is not None else None
    request_id: str | None = request.scope.get("state", {}).get("request_id")
    return AuditContext(tenant, key_id, request_id, anonymize_address(client))


async def _audit_denied_request(service: AppState, request: Request, audit: AuditContext) -> None:
    """Write an audit event, at most one per minute and key. Errors do not change the response."""
    if audit.key_id is None or not service.denial_throttle.allow(audit.key_id):
        return
    endpoint = f"{request.method} {request.scope['route'].path}"
    try:
        await run_in_threadpool(_write_denied_event, service, audit, endpoint)
    except Busy:
        log.warning("denied_attempt_not_noted", exc_info=True)


def _write_denied_event(service: AppState, audit: AuditContext, endpoint: str) -> None:
    with service.store.db.write() as connection:
        write_audit_event(connection, service.store.clock(), audit, "request.denied", endpoint, "denied")


CallerDep = Annotated[Caller, Depends(_get_caller)]
AdminDep = Annotated[Caller, Depends(_get_admin)]


def get_declared_scopes(app: FastAPI) -> dict[tuple[str, str], Scope | None]:
    """(HTTP method, path) of every route → its scope, read from its dependencies; None: it declares none."""
    scopes: dict[tuple[str, str], Scope | None] = {}
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        calls = _collect_dependency_calls(dependant) if dependant is not None else set()
        for method in route.methods or ():
            default_scope = get_required_scope(method) if _get_caller in calls else None
            scopes[method, str(route.path)] = Scope.ADMIN if _get_admin in calls else default_scope
    return scopes


def _collect_dependency_calls(dependant: Any) -> set[Any]:
    calls = {dependant.call}
    for inner in dependant.dependencies:
        calls |= _collect_dependency_calls(inner)
    return calls


# What a key may do. Each scope implies the ones before it.

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def get_required_scope(method: str) -> Scope:
    """The default scope of an endpoint: `read` for safe methods, `convert` for everything else."""
    return Scope.READ if method.upper() in _SAFE_METHODS else Scope.CONVERT
