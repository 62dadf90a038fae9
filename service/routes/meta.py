"""`/methods`, `/livez`, `/readyz`, `/metrics`, and the redirect from `/` to the documentation."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import RedirectResponse, Response

import migrations
from rebase.methods.params import describe
from rebase.schemas.meta import MethodListOut, MethodOut, ReadyOut
from service.auth import CallerDep
from service.deps import ServiceDep
from service.problem_details import build_problem_response

router = APIRouter(tags=["service"])

_METHODS_JSON = MethodListOut(methods=[MethodOut(**method) for method in describe()]).model_dump_json()


@router.get("/methods", response_model=MethodListOut)
async def list_methods(_caller: CallerDep) -> Response:
    """The transfer methods, with a JSON schema of each one's parameters."""
    return Response(_METHODS_JSON, media_type="application/json")


@router.get("/livez", response_model=dict[str, str])
async def livez() -> Response:
    """The process is running."""
    return Response('{"status":"alive"}', media_type="application/json")


@router.get("/readyz", response_model=ReadyOut)
def readyz(service: ServiceDep) -> Response:
    """The database is available and at the schema revision of this version."""
    with service.store.db.read() as connection:
        current = migrations.current(connection)
    if current != service.migrations_head:
        return build_problem_response(
            "not_migrated",
            f"The database is at migration {current}, but this version needs {service.migrations_head}.",
            hint="Run the migrations ('rebase migrate').",
        )
    broker: dict[bool | None, Literal["ok", "unreachable", "unknown"]] = {
        True: "ok",
        False: "unreachable",
        None: "unknown",
    }
    view = ReadyOut(migration=current, broker=broker[service.scheduler.state.broker_ok])
    return Response(view.model_dump_json(), media_type="application/json")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: ServiceDep) -> Response:
    """Prometheus text format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def root() -> RedirectResponse:
    """Redirect browsers to the documentation."""
    return RedirectResponse("/docs")
