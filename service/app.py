"""The app factory: one FastAPI app for one deployment."""

from __future__ import annotations

import gc
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

import migrations
from rebase.errors import RebaseError, SettingsInvalid
from rebase.schemas.field_errors import Problem
from rebase.settings import Settings
from rebase.store import broker
from rebase.store.database import Database
from rebase.store.limits import Limits
from rebase.store.retention import Retention, RetentionPeriods
from rebase.store.scheduler import Notify, Scheduler
from rebase.store.store import Store
from service import auth, problem_details
from service.deps import AppState
from service.group_commit import GroupCommitter
from service.metrics import Metrics
from service.middleware import RequestMiddleware
from service.rate_limit import LocalRateLimiter, RedisRateLimiter
from service.routes import (
    anchor_pools,
    callbacks,
    campaigns,
    conversions,
    events,
    hub_token,
    hub_webhook,
    jobs,
    keys,
    meta,
    subscriptions,
    tenant,
)

VERSION = "0.1.0"
_PROBLEM = {
    "description": "An error.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def create_app(settings: Settings, *, notify: Notify | None = None) -> FastAPI:
    """An app that shares no state with other apps. `notify` replaces the deployment's broker.

    Raises SettingsInvalid if it would serve other machines without requiring API keys.
    """
    require_loopback_without_keys(settings)
    store = Store(
        Database.open(settings.resolved_database_url),
        max_attempts=settings.max_attempts,
        limits=Limits.from_settings(settings),
    )
    scheduler = Scheduler(
        store,
        notify or partial(broker.send_notification, broker.make_sender(settings)),
        settings.sweep_s,
        reconcile_s=settings.reconcile_s,
        retention=Retention(store, RetentionPeriods.from_settings(settings)),
    )
    service = AppState(
        settings,
        store,
        scheduler,
        Metrics(store, scheduler),
        migrations.head(),
        GroupCommitter(store),
        rate_limiter=RedisRateLimiter(settings.redis_url.get_secret_value())
        if settings.redis_url
        else LocalRateLimiter(),
    )
    app = FastAPI(
        title="Rebase",
        version=VERSION,
        summary="Transfer a LoRA adapter to a new base model, with evidence that it works.",
        lifespan=_lifespan,
        responses={"4XX": _PROBLEM, "5XX": _PROBLEM},
    )
    app.state.service = service
    for router in (
        conversions.router,
        jobs.router,
        events.router,
        callbacks.router,
        anchor_pools.router,
        meta.router,
    ):
        app.include_router(router)
    for router in (keys.router, hub_token.router, tenant.router):
        app.include_router(router)
    for router in (hub_webhook.router, subscriptions.router, campaigns.router):
        app.include_router(router)
    app.add_exception_handler(RebaseError, problem_details.on_rebase_error)
    app.add_exception_handler(HTTPException, problem_details.on_http_error)
    app.add_exception_handler(RequestValidationError, problem_details.on_invalid_request)
    app.add_middleware(
        RequestMiddleware,
        metrics=service.metrics,
        max_body_bytes=settings.max_body_bytes,
        local_only=settings.auth == "none",
    )
    app.openapi = _make_openapi_builder(app)  # type: ignore[method-assign]
    return app


def require_loopback_without_keys(settings: Settings) -> None:
    """Without API keys, serve loopback only. Raises SettingsInvalid."""
    if settings.auth != "none":
        return
    try:
        is_loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        is_loopback = settings.host == "localhost"
    if not is_loopback:
        raise SettingsInvalid(
            f"Without API keys the service may listen on loopback only, not on '{settings.host}'.",
            hint="Set REBASE_AUTH=keys and create a key with 'rebase keys create', or REBASE_HOST=127.0.0.1.",
        )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: AppState = app.state.service
    service.scheduler.start()
    service.group_committer.start()
    # Everything built so far lives as long as the process; scanning it in every collection costs latency.
    gc.collect()
    gc.freeze()
    yield
    service.group_committer.stop()
    service.scheduler.stop()
    await service.rate_limiter.close()
    service.store.db.close()


def _make_openapi_builder(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The OpenAPI schema including the error responses, built on first use."""

    def build_schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, summary=app.summary, routes=app.routes
            )
            problem_schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components.update(problem_schema.pop("$defs", {}))
            components["Problem"] = problem_schema
            document["components"]["securitySchemes"] = {"key": auth.SECURITY_SCHEME}
            document["security"] = [{"key": []}, {}]
            for (method, path), scope in auth.get_declared_scopes(app).items():
                operation = document["paths"].get(path, {}).get(method.lower())
                if operation is not None and scope is not None:
                    operation["x-scope"] = scope.value
            app.openapi_schema = document
        return app.openapi_schema

    return build_schema
