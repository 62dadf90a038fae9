"""`rebase convert`: submit a conversion to a running service."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.follow import exit_for_job, fetch_diagnostics, follow_job, open_client
from rebase.cli.output import Output
from rebase.cli.request import build_request
from rebase.cli.tables import build_evaluation_tables, build_selection_tables, find_selection, format_job
from rebase.errors import RequestInvalid
from rebase.schemas.validation import read_evaluation


def command(
    adapter: options.Adapter,
    target: options.Target,
    source: options.Source = None,
    method: options.Method = None,
    settings: options.Settings = None,
    evaluate: options.EvaluateFile = None,
    output: Annotated[
        str | None,
        typer.Option("--output", metavar="REPO", help="Output repo; default: <adapter>--<target>, private."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", metavar="KEY", help=("Idempotency key: the same key returns the same job.")
        ),
    ] = None,
    hub_token_env: Annotated[
        str | None,
        typer.Option(
            "--hub-token-env", metavar="NAME", help="Environment variable with a Hub token for this job only."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job until it ends.")] = False,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Convert an adapter through a running service."""
    out = Output(as_json=as_json)
    request = build_request(
        adapter=adapter,
        target=target,
        source=source,
        method=method,
        output=output,
        settings=settings or (),
        evaluate=read_evaluation(evaluate) if evaluate is not None else None,
    )
    token = os.environ.get(hub_token_env) if hub_token_env is not None else None
    if hub_token_env is not None and not token:
        raise RequestInvalid(f"The variable {hub_token_env} contains no token.")
    with open_client(url) as client:
        job = client.convert(request, idempotency_key=idempotency_key, hub_token=token)
        if wait:
            out.note(f"Job {job.id} accepted.")
            job = follow_job(client, job, out)
        reasons = fetch_diagnostics(client, job)
    out.write_json(job.model_dump(mode="json"))
    out.show(*format_job(job, reasons), *build_selection_tables(find_selection(job.result, reasons)))
    out.show(*build_evaluation_tables((job.result or reasons or {}).get("evaluation")))
    if not job.done:
        out.note(f"Follow it: rebase status {job.id} --wait")
    return exit_for_job(job)
