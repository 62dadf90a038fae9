"""`rebase precheck`: can this move work? A verdict with reasons, and nothing converted."""

from __future__ import annotations

from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.follow import exit_for_job, follow_job, open_client
from rebase.cli.output import Output
from rebase.cli.request import build_request
from rebase.cli.tables import format_job, format_layers, format_verdict
from rebase.cli.transfer import HubFolderOption, build_local_request, run_locally
from rebase.errors import RequestInvalid
from rebase.schemas.conversions import check_precheck_request


def command(
    adapter: options.Adapter,
    target: options.Target,
    source: options.Source = None,
    method: options.Method = None,
    settings: options.Settings = None,
    local: Annotated[
        bool, typer.Option("--local", help=("Run locally without a service; folders are allowed."))
    ] = False,
    hub: HubFolderOption = None,
    pool: options.PoolFile = None,
    corpus: options.CorpusFile = None,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Ask whether an adapter can move to another base. Exit code 3 when it cannot."""
    out = Output(as_json=as_json)
    if local:
        request, folders, pools = build_local_request(adapter, target, source, method, settings, pool)
        check_precheck_request(request)
        evidence = run_locally(request, "precheck", folders, hub, out, pools=pools, corpus=corpus)
        result = evidence.precheck
        lost = {"not_carried": evidence.not_carried, "warnings": evidence.warnings}
        out.write_json(result.model_dump(mode="json") | lost)
        out.show(*format_verdict(result.verdict, [reason.message for reason in result.reasons]))
        out.show(*[f"- {line}" for line in evidence.warnings])
        out.show(*format_layers(evidence.model_dump(mode="json")["layer_map"]))
        return Exit.INCOMPATIBLE if result.verdict == "incompatible" else Exit.DONE
    if pool is not None:
        raise RequestInvalid(
            "--pool requires --local: a service only knows the pools that were registered with it.",
            hint="Register it with `rebase pools add` and select it with --set pool=ID.",
        )
    if corpus is not None:
        raise RequestInvalid(
            "--corpus requires --local: a service does not open its clients' files.",
            hint="Leave it out; the service uses the bundled text.",
        )
    request = build_request(
        adapter=adapter, target=target, source=source, method=method, settings=settings or ()
    )
    check_precheck_request(request)
    with open_client(url) as client:
        job = follow_job(client, client.precheck(request), out)
        diagnostics = client.get_diagnostics(job.id) if job.done else None
    out.write_json(job.model_dump(mode="json"))
    out.show(*format_job(job, diagnostics))
    return exit_for_job(job)
