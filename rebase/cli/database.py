"""`rebase keys`, `rebase migrate`: work on this deployment's database."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from core.settings import Settings
from rebase.cli import options
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.stack.database import database_trouble, migrate_database

if TYPE_CHECKING:
    from core.jobs import JobStore

keys = typer.Typer(help="API keys for a service with REBASE_AUTH=keys.", no_args_is_help=True)


def _store() -> JobStore:
    from core.db import Database
    from core.jobs import JobStore

    return JobStore(Database.open(Settings().resolved_database_url))


@keys.command("create")
def keys_create(
    tenant: Annotated[
        str, typer.Option("--tenant", help="Whose jobs the key may see; made when it is new.")
    ] = "default",
    name: Annotated[str, typer.Option("--name", help="For you, to tell keys apart.")] = "key",
    as_json: options.AsJson = False,
) -> int:
    """Make a key and print it, once; only its hash is stored."""
    from core.keys import create

    out = Output(as_json=as_json)
    with database_trouble():
        key = create(_store(), tenant, name)
    out.document({"key": key, "tenant": tenant, "name": name})
    out.show(key)
    out.note("Keep it now; it cannot be shown again. Clients read it from REBASE_API_KEY.")
    return Exit.DONE


@keys.command("ls")
def keys_ls(as_json: options.AsJson = False) -> int:
    """List keys by name and prefix."""
    from core.keys import list_keys

    out = Output(as_json=as_json)
    with database_trouble():
        found = list_keys(_store())
    out.document({"keys": [asdict(key) for key in found]})
    table = Table(
        "id", "tenant", "name", "prefix", "created (UTC)", "revoked (UTC)", box=None, pad_edge=False
    )
    for key in found:
        row = (
            key.id,
            key.tenant_id,
            key.name,
            key.prefix,
            str(key.created_at)[:19],
            str(key.revoked_at or "")[:19],
        )
        table.add_row(*map(Text, row))
    out.show(table if found else "No keys.")
    return Exit.DONE


@keys.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], as_json: options.AsJson = False) -> int:
    """End a key's life."""
    from core.keys import revoke

    out = Output(as_json=as_json)
    with database_trouble():
        revoke(_store(), key_id)
    out.document({"revoked": key_id})
    out.show("Revoked.")
    return Exit.DONE


def migrate(as_json: options.AsJson = False) -> int:
    """Bring the database of this deployment to the newest schema."""
    out = Output(as_json=as_json)
    revision = migrate_database(Settings().resolved_database_url)
    out.document({"revision": revision})
    out.show(f"The database is at revision {revision}.")
    return Exit.DONE
