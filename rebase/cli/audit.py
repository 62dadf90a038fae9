"""`rebase audit`: who did what, on the service's side."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.cli.store import open_store
from rebase.settings import Settings
from rebase.stack.database import database_errors


def show_audit_log(
    tenant: Annotated[str, typer.Option("--tenant", help="Whose log.")] = "default",
    limit: Annotated[int, typer.Option("--limit", help="So many lines, the newest first.")] = 50,
    before: Annotated[int | None, typer.Option("--before", help="Only lines with smaller ids.")] = None,
    as_json: options.AsJson = False,
) -> int:
    """Show a tenant's audit log."""
    from rebase.store.audit import list_audit_events

    out = Output(as_json=as_json)
    with database_errors():
        lines = list_audit_events(open_store(Settings()).db, tenant, before=before, limit=limit)
    out.write_json({"lines": [asdict(line) for line in lines]})
    columns = ("id", "at (UTC)", "key", "action", "object", "outcome", "request", "from")
    table = Table(*columns, box=None, pad_edge=False)
    for line in lines:
        at = str(line.at)[:19]
        cells = (line.key_id or "command line", line.action, line.object, line.outcome)
        table.add_row(*map(Text, (str(line.id), at, *cells, line.request_id or "", line.client or "")))
    out.show(table if lines else "No lines.")
    return Exit.DONE
