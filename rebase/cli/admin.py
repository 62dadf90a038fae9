"""`rebase audit`, `rebase migrate` and key management for encrypted secrets, for operators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.settings import Settings
from rebase.store.deployment import database_errors, migrate_database, open_store


def show_audit_log(
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant whose log to show.")] = "default",
    limit: Annotated[int, typer.Option("--limit", help="Number of entries to show, newest first.")] = 50,
    before: Annotated[int | None, typer.Option("--before", help="Only entries with smaller ids.")] = None,
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
    out.show(table if lines else "No entries.")
    return Exit.DONE


secret_commands = typer.Typer(help="Keys for secrets at rest (REBASE_SECRET_KEYS).", no_args_is_help=True)


@secret_commands.command("key")
def print_new_key(as_json: options.AsJson = False) -> int:
    """Print a new random key for REBASE_SECRET_KEYS. Nothing is stored."""
    from rebase.store.vault import generate_key

    out, new_key = Output(as_json=as_json), generate_key()
    out.write_json({"key": new_key})
    out.show(new_key)
    out.note("Set REBASE_SECRET_KEYS to it for the API and every worker. To rotate keys, set NEW,OLD.")
    return Exit.DONE


@secret_commands.command("rotate")
def rotate_keys(as_json: options.AsJson = False) -> int:
    """Re-encrypt all stored secrets with the first key of REBASE_SECRET_KEYS; then remove the others."""
    from rebase.store.vault import Vault, rotate_encryption

    out, settings = Output(as_json=as_json), Settings()
    with database_errors():
        count = rotate_encryption(open_store(settings).db, Vault.from_settings(settings))
    out.write_json({"resealed": count})
    out.show(f"{count} secret(s) are now encrypted with the newest key.")
    return Exit.DONE


def migrate(as_json: options.AsJson = False) -> int:
    """Migrate this deployment's database to the newest schema."""
    out = Output(as_json=as_json)
    revision = migrate_database(Settings().resolved_database_url)
    out.write_json({"revision": revision})
    out.show(f"The database is at revision {revision}.")
    return Exit.DONE
