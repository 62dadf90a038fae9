"""`rebase keys`: manage API keys, on the machine of the service."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.errors import RequestInvalid
from rebase.schemas.api_keys import Scope
from rebase.settings import Settings
from rebase.store.deployment import database_errors, open_store

if TYPE_CHECKING:
    from rebase.store.api_keys import KeyRecord, NewKey
    from rebase.store.store import Store


commands = typer.Typer(help="API keys for a service with REBASE_AUTH=keys.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="ID")]


@commands.command("create")
def create(
    tenant: Annotated[
        str, typer.Option("--tenant", help="Tenant of the key, created if it is new.")
    ] = "default",
    name: Annotated[str, typer.Option("--name", help="A name to distinguish keys.")] = "key",
    scope: Annotated[
        Scope,
        typer.Option(
            "--scope", help=("read: view; convert: also submit; admin: also manage keys and tokens.")
        ),
    ] = Scope.CONVERT,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", metavar="TIME", help="e.g. 90d, 12h; default: never.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Create a key and print it, once; only its hash is stored."""
    from rebase.store.api_keys import issue_key
    from rebase.store.audit import AuditContext

    out = Output(as_json=as_json)
    lifetime = parse_duration(expires_in) if expires_in is not None else None
    with database_errors():
        new_key = issue_key(open_store(Settings()), tenant, name, scope, lifetime, AuditContext(tenant))
    _show_new_key(out, new_key)
    return Exit.DONE


@commands.command("rotate")
def rotate(
    key_id: KeyId,
    overlap: Annotated[
        str, typer.Option("--overlap", metavar="TIME", help="How long the old key keeps working.")
    ] = "24h",
    as_json: options.AsJson = False,
) -> int:
    """Replace a key; the old one keeps working for a while. Prints the new key, once."""
    from rebase.store import api_keys as keys
    from rebase.store.audit import AuditContext

    out = Output(as_json=as_json)
    store = open_store(Settings())
    with database_errors():
        new_key = keys.rotate_key(
            store, key_id, parse_duration(overlap), audit=AuditContext(_find_tenant(key_id, store))
        )
    _show_new_key(out, new_key)
    return Exit.DONE


@commands.command("ls")
def ls(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only keys of this tenant.")] = None,
    as_json: options.AsJson = False,
) -> int:
    """List keys by name and prefix."""
    from rebase.store.api_keys import list_keys

    out = Output(as_json=as_json)
    with database_errors():
        records = list_keys(open_store(Settings()), tenant)
    out.write_json({"keys": [asdict(key) for key in records]})
    columns = ("id", "tenant", "name", "prefix", "scope", "created (UTC)", "expires", "last used", "revoked")
    table = Table(*columns, box=None, pad_edge=False)
    for key in records:
        table.add_row(*map(Text, _format_row(key)))
    out.show(table if records else "No keys.")
    return Exit.DONE


@commands.command("revoke")
def revoke(key_id: KeyId, as_json: options.AsJson = False) -> int:
    """Revoke a key."""
    from rebase.store import api_keys as keys
    from rebase.store.audit import AuditContext

    out = Output(as_json=as_json)
    store = open_store(Settings())
    with database_errors():
        keys.revoke_key(store, key_id, audit=AuditContext(_find_tenant(key_id, store)))
    out.write_json({"revoked": key_id})
    out.show("Revoked.")
    return Exit.DONE


def _show_new_key(out: Output, new_key: NewKey) -> None:
    record = new_key.record
    document = {"key": new_key.key, **asdict(record), "tenant": record.tenant_id}
    del document["tenant_id"]
    out.write_json(document)
    out.show(new_key.key)
    out.note("Save it now; it cannot be shown again. Clients read it from REBASE_API_KEY.")


def _format_row(key: KeyRecord) -> tuple[str, ...]:
    times = (key.created_at, key.expires_at, key.last_used_at, key.revoked_at)
    formatted_times = [str(time)[:16] if time is not None else "" for time in times]
    return (key.id, key.tenant_id, key.name, key.prefix, key.scope, *formatted_times)


def _find_tenant(key_id: str, store: Store) -> str:
    """The tenant that owns the key, for the audit log; a default for an unknown key, which fails anyway."""
    from rebase.store.api_keys import list_keys

    return next((key.tenant_id for key in list_keys(store) if key.id == key_id), "default")


_DURATION_PATTERN = re.compile(r"(\d{1,6})([smhdw])")
_DURATION_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """Parse `90d`, `12h` or `30m`. Raises RequestInvalid."""
    match = _DURATION_PATTERN.fullmatch(text.strip())
    if match is None:
        raise RequestInvalid(f"'{text}' is not a duration.", hint="Examples: 90d, 12h, 30m")
    return timedelta(**{_DURATION_UNITS[match[2]]: int(match[1])})
