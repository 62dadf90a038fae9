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
from rebase.settings import Settings
from rebase.store import broker
from rebase.store.database import Database
from rebase.store.limits import Limits
from rebase.store.retention import Retention, RetentionPeriods
from rebase.store.scheduler import Notify, Scheduler
from rebase.store.store import Store
from service import (
    auth,
    campaigns,
    events,
    hub_tokens,
    jobs,
    keys,
    meta,
    pools,
    problems,
    submit,
    subscriptions,
    tenant,
    webhook,
)
from service.edge import Edge
from service.intake import Intake
from service.metrics import Metrics
from service.rates import LocalRates, RedisRates
from service.routes import callbacks
from service.state import Service

VERSION = "0.1.0"
_PROBLEM = {
    "description": "An error.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def create_app(settings: Settings, *, ring: Notify | None = None) -> FastAPI:
    """An app that shares nothing with any other. `ring` replaces the deployment's broker.

    Raises SettingsInvalid when it would serve other machines without asking for keys.
    """
    check_binding(settings)
    store = Store(
        Database.open(settings.resolved_database_url),
        max_attempts=settings.max_attempts,
        limits=Limits.from_settings(settings),
    )
    keeper = Scheduler(
        store,
        ring or partial(broker.send_notification, broker.make_sender(settings)),
        settings.sweep_s,
        reconcile_s=settings.reconcile_s,
        retention=Retention(store, RetentionPeriods.from_settings(settings)),
    )
    service = Service(
        settings,
        store,
        keeper,
        Metrics(store, keeper),
        migrations.head(),
        Intake(store),
        rates=RedisRates(settings.redis_url.get_secret_value()) if settings.redis_url else LocalRates(),
    )
    app = FastAPI(
        title="Rebase",
        version=VERSION,
        summary="Move a LoRA adapter onto a new base model, with evidence.",
        lifespan=_lifespan,
        responses={"4XX": _PROBLEM, "5XX": _PROBLEM},
    )
    app.state.service = service
    for router in (
        submit.router,
        jobs.router,
        events.router,
        callbacks.router,
        pools.router,
        meta.router,
    ):
        app.include_router(router)
    for router in (keys.router, hub_tokens.router, tenant.router):
        app.include_router(router)
    for router in (webhook.router, subscriptions.router, campaigns.router):
        app.include_router(router)
    app.add_exception_handler(RebaseError, problems.on_rebase_error)
    app.add_exception_handler(HTTPException, problems.on_http_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid_request)
    app.add_middleware(
        Edge,
        metrics=service.metrics,
        max_body_bytes=settings.max_body_bytes,
        local_only=settings.auth == "none",
    )
    app.openapi = _openapi(app)  # type: ignore[method-assign]
    return app


def check_binding(settings: Settings) -> None:
    """Without keys, loopback only. Raises SettingsInvalid."""
    if settings.auth != "none":
        return
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = settings.host == "localhost"
    if not loopback:
        raise SettingsInvalid(
            f"Without API keys the service may listen on loopback only, not on '{settings.host}'.",
            hint="Set REBASE_AUTH=keys and make a key with 'rebase keys create', or REBASE_HOST=127.0.0.1.",
        )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.keeper.start()
    service.intake.start()
    # What was built so far lives as long as the process; looking through it again and again costs latency.
    gc.collect()
    gc.freeze()
    yield
    service.intake.stop()
    service.keeper.stop()
    await service.rates.close()
    service.store.db.close()


def _openapi(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The schema with the shape of errors in it, made on first use."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            shape = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            shared = made.setdefault("components", {}).setdefault("schemas", {})
            shared.update(shape.pop("$defs", {}))
            shared["Problem"] = shape
            made["components"]["securitySchemes"] = {"key": auth.SCHEME}
            made["security"] = [{"key": []}, {}]
            for (method, path), scope in auth.declared_scopes(app).items():
                operation = made["paths"].get(path, {}).get(method.lower())
                if operation is not None and scope is not None:
                    operation["x-scope"] = scope.value
            app.openapi_schema = made
        return app.openapi_schema

    return schema
