"""`rebase tenants`: what each tenant may use, its Hub token, and how it is deleted; on the service's side."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exits import CommandFailed, Exit
from rebase.cli.output import Output
from rebase.cli.store import open_store
from rebase.errors import RequestInvalid, StateConflict
from rebase.settings import Settings
from rebase.stack.database import database_trouble

if TYPE_CHECKING:
    from rebase.store.limits import Limits
    from rebase.store.store import Store

commands = typer.Typer(help="Tenants: limits, Hub tokens, deletion.", no_args_is_help=True)
token_commands = typer.Typer(help="A tenant's own token for the Hub.", no_args_is_help=True)
commands.add_typer(token_commands, name="token")

TenantId = Annotated[str, typer.Argument(metavar="TENANT")]
_FORGOTTEN_S = 11.0  # running services forget a revoked key within ten seconds
_LOOK_S = 0.5


def _number(text: str) -> int | None:
    """`5`; `none` for no limit; `default` for the setting."""
    from rebase.store.limits import UNLIMITED

    words = {"none": UNLIMITED, "default": None}
    if text in words:
        return words[text]
    if not text.isascii() or not text.isdecimal():
        raise RequestInvalid(f"'{text}' is no limit.", hint="A number from 1, 'none' or 'default'.")
    return int(text)


def _limit(name: str, meaning: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar="N", help=f"{meaning}; 'none': no limit, 'default': the setting."
    )
    return option


@commands.command("set")
def set_limits(
    tenant: TenantId,
    max_running: Annotated[str | None, _limit("--max-running", "Jobs that run at once")] = None,
    max_queued: Annotated[str | None, _limit("--max-queued", "Jobs that are not done")] = None,
    jobs_per_day: Annotated[str | None, _limit("--jobs-per-day", "Jobs within 24 hours")] = None,
    requests_per_minute: Annotated[str | None, _limit("--requests-per-minute", "Requests")] = None,
    as_json: options.AsJson = False,
) -> int:
    """Change what a tenant may use. Services notice within ten seconds."""
    from rebase.store.audit import AuditContext
    from rebase.store.tenants import change_limits, get_tenant

    out, store = Output(as_json=as_json), open_store(Settings())
    given = {
        "max_running": max_running,
        "max_queued": max_queued,
        "jobs_per_day": jobs_per_day,
        "requests_per_minute": requests_per_minute,
    }
    changes = {name: _number(text) for name, text in given.items() if text is not None}
    if not changes:
        raise RequestInvalid("Nothing to set.", hint="Give at least one limit, e.g. --max-running 2.")
    with database_trouble():
        change_limits(store, tenant, changes, AuditContext(tenant))
        limits = get_tenant(store, tenant).limits
    out.document({"tenant": tenant, "limits": asdict(limits)})
    out.show(f"{tenant}: {_said(limits)}")
    return Exit.DONE


@commands.command("ls")
def ls(as_json: options.AsJson = False) -> int:
    """List tenants with what they may use and have."""
    from rebase.store.tenants import get_tenant, list_tenants

    out, store = Output(as_json=as_json), open_store(Settings())
    with database_trouble():
        found = [get_tenant(store, tenant) for tenant in list_tenants(store)]
    out.document({"tenants": [asdict(tenant) for tenant in found]})
    table = Table("tenant", "keys", "running", "open", "Hub token", "limits", box=None, pad_edge=False)
    for one in found:
        counts = (str(one.keys), str(one.jobs_running), str(one.jobs_open))
        table.add_row(*map(Text, (one.id, *counts, "yes" if one.hub_token else "no", _said(one.limits))))
    out.show(table)
    return Exit.DONE


@commands.command("show")
def show(tenant: TenantId, as_json: options.AsJson = False) -> int:
    """One tenant; `*` marks what its own row says in place of the settings."""
    from rebase.store.tenants import get_tenant

    out = Output(as_json=as_json)
    with database_trouble():
        found = get_tenant(open_store(Settings()), tenant)
    out.document(asdict(found))
    out.show(f"{found.id}, since {str(found.created_at)[:19]} UTC")
    out.show(f"keys {found.keys}, jobs running {found.jobs_running}, jobs not done {found.jobs_open}")
    out.show(f"Hub token {'stored' if found.hub_token else 'not stored'}")
    for name, number in asdict(found.limits).items():
        mark = " *" if found.own[name] is not None else ""
        out.show(f"{name.replace('_', '-')}: {number if number is not None else 'no limit'}{mark}")
    return Exit.DONE


@token_commands.command("set")
def set_token(
    tenant: TenantId,
    env: Annotated[
        str | None, typer.Option("--env", metavar="NAME", help="Read it from this environment variable.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Store a tenant's Hub token, encrypted. Read from stdin, or from a variable; never an argument, which
    every process of this machine could see."""
    from rebase.store.audit import AuditContext
    from rebase.store.hub_tokens import put_tenant_token
    from rebase.store.vault import Vault

    out, settings = Output(as_json=as_json), Settings()
    token = os.environ.get(env) if env is not None else sys.stdin.readline()
    if not token or not token.strip():
        where = f"The variable {env}" if env is not None else "stdin"
        raise RequestInvalid(
            f"{where} holds no token.", hint="For example: rebase tenants token set acme < FILE"
        )
    with database_trouble():
        put_tenant_token(
            open_store(settings), Vault.from_settings(settings), tenant, token, AuditContext(tenant)
        )
    out.document({"tenant": tenant, "stored": True})
    out.show("Stored.")
    return Exit.DONE


@token_commands.command("rm")
def remove_token(tenant: TenantId, as_json: options.AsJson = False) -> int:
    """Forget a tenant's Hub token."""
    from rebase.store.audit import AuditContext
    from rebase.store.hub_tokens import delete_tenant_token

    out = Output(as_json=as_json)
    with database_trouble():
        delete_tenant_token(open_store(Settings()), tenant, AuditContext(tenant))
    out.document({"tenant": tenant, "stored": False})
    out.show("Forgotten.")
    return Exit.DONE


@commands.command("delete")
def delete(
    tenant: TenantId,
    yes: Annotated[bool, typer.Option("--yes", help="It cannot be undone.")] = False,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Jobs, pools and secrets; keys, limits and log stay.")
    ] = False,
    patience: Annotated[
        float,
        typer.Option("--patience", metavar="SECONDS", help="How long to wait for running jobs to stop."),
    ] = 60.0,
    as_json: options.AsJson = False,
) -> int:
    """Cancel a tenant's jobs, then delete every row of it."""
    from rebase.store.audit import AuditContext
    from rebase.store.tenants import delete_tenant, erase_tenant_data, revoke_all_keys

    out, store = Output(as_json=as_json), open_store(Settings())
    if not yes:
        raise CommandFailed(f"This deletes what belongs to '{tenant}' for good.", hint="Add --yes.")
    with database_trouble():
        began = time.monotonic()
        if not data_only:
            revoke_all_keys(store, tenant)
        _wait_for_jobs(store, tenant, out, patience)
        if data_only:
            erase_tenant_data(store, tenant, AuditContext(tenant))
        else:
            time.sleep(max(0.0, _FORGOTTEN_S - (time.monotonic() - began)))
            _wait_for_jobs(store, tenant, out, patience)
            delete_tenant(store, tenant, AuditContext(tenant))
    out.document({"deleted": tenant, "data_only": data_only})
    out.show("Deleted.")
    return Exit.DONE


def _wait_for_jobs(store: Store, tenant: str, out: Output, patience_s: float) -> None:
    """Raises StateConflict when some are not done by then."""
    from rebase.store.tenants import cancel_all_jobs, count_open_jobs

    left, until = cancel_all_jobs(store, tenant), time.monotonic() + patience_s
    if left:
        out.note(f"Waiting for {left} job(s) to stop.")
    while count_open_jobs(store, tenant):
        if time.monotonic() > until:
            raise StateConflict(
                f"Some jobs of '{tenant}' have not stopped after {patience_s:g} s; they were asked to.",
                hint="Run the command again.",
            )
        time.sleep(_LOOK_S)


def _said(limits: Limits) -> str:
    said = [
        f"{name.replace('_', '-')} {number}" for name, number in asdict(limits).items() if number is not None
    ]
    return ", ".join(said) or "no limits"
