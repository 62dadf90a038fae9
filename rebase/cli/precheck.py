"""`rebase precheck`: can this move work? A verdict with reasons, and nothing converted."""

from __future__ import annotations

from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.cli.request import build_request
from rebase.cli.tables import job_lines, layer_lines, verdict_lines
from rebase.cli.transfer import LocalHub, local_request, run_locally
from rebase.cli.waiting import exit_of, follow, open_client
from rebase.errors import RequestInvalid
from rebase.schemas.conversions import check_precheck_request


def command(
    adapter: options.Adapter,
    target: options.Target,
    source: options.Source = None,
    method: options.Method = None,
    settings: options.Settings = None,
    local: Annotated[bool, typer.Option("--local", help="Here, without a service; folders allowed.")] = False,
    hub: LocalHub = None,
    pool: options.PoolFile = None,
    corpus: options.CorpusFile = None,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Ask whether an adapter can move to another base. Exit code 3 when it cannot."""
    out = Output(as_json=as_json)
    if local:
        request, folders, pools = local_request(adapter, target, source, method, settings, pool)
        check_precheck_request(request)
        evidence = run_locally(request, "precheck", folders, hub, out, pools=pools, corpus=corpus)
        found = evidence.precheck
        out.document(found.model_dump(mode="json"))
        out.show(*verdict_lines(found.verdict, [reason.message for reason in found.reasons]))
        out.show(*layer_lines(evidence.model_dump(mode="json")["layer_map"]))
        return Exit.INCOMPATIBLE if found.verdict == "incompatible" else Exit.DONE
    if pool is not None:
        raise RequestInvalid(
            "--pool is for --local: a service knows the pools that were registered with it.",
            hint="Register it with `rebase pools add` and name it with --set pool=ID.",
        )
    if corpus is not None:
        raise RequestInvalid(
            "--corpus is for --local: a service opens no file of its clients.",
            hint="Leave it out; the service reads the bundled text.",
        )
    request = build_request(
        adapter=adapter, target=target, source=source, method=method, settings=settings or ()
    )
    check_precheck_request(request)
    with open_client(url) as client:
        job = follow(client, client.precheck(request), out)
        measured = client.diagnostics(job.id) if job.done else None
    out.document(job.model_dump(mode="json"))
    out.show(*job_lines(job, measured))
    return exit_of(job)
