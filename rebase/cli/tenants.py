"""`rebase tenants`: each tenant's limits and Hub token, and deletion; on the machine of the service."""

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
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.errors import CommandFailed, RequestInvalid, StateConflict
from rebase.settings import Settings
from rebase.store.deployment import database_errors, open_store

if TYPE_CHECKING:
    from rebase.store.limits import Limits
    from rebase.store.store import Store

commands = typer.Typer(help="Tenants: limits, Hub tokens, deletion.", no_args_is_help=True)
token_commands = typer.Typer(help="A tenant's own token for the Hub.", no_args_is_help=True)
commands.add_typer(token_commands, name="token")

TenantId = Annotated[str, typer.Argument(metavar="TENANT")]
_KEY_CACHE_S = 11.0  # running services accept a revoked key for up to ten seconds
_POLL_S = 0.5


def _parse_limit(text: str) -> int | None:
    """Parse `5`, `none` (no limit) or `default` (the setting)."""
    from rebase.store.limits import UNLIMITED

    keywords = {"none": UNLIMITED, "default": None}
    if text in keywords:
        return keywords[text]
    if not text.isascii() or not text.isdecimal():
        raise RequestInvalid(f"'{text}' is not a limit.", hint="Use an integer from 1, 'none' or 'default'.")
    return int(text)


def _make_limit_option(name: str, meaning: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar="N", help=f"{meaning}; 'none': no limit, 'default': the setting."
    )
    return option


@commands.command("set")
def set_limits(
    tenant: TenantId,
    max_running: Annotated[str | None, _make_limit_option("--max-running", "Maximum concurrent jobs")] = None,
    max_queued: Annotated[str | None, _make_limit_option("--max-queued", "Maximum unfinished jobs")] = None,
    jobs_per_day: Annotated[
        str | None, _make_limit_option("--jobs-per-day", ("Maximum jobs within 24 hours"))
    ] = None,
    requests_per_minute: Annotated[
        str | None, _make_limit_option("--requests-per-minute", "Requests")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Change a tenant's limits. Services notice within ten seconds."""
    from rebase.store.audit import AuditContext
    from rebase.store.tenants import change_limits, get_tenant

    out, store = Output(as_json=as_json), open_store(Settings())
    raw_limits = {
        "max_running": max_running,
        "max_queued": max_queued,
        "jobs_per_day": jobs_per_day,
        "requests_per_minute": requests_per_minute,
    }
    changes = {name: _parse_limit(text) for name, text in raw_limits.items() if text is not None}
    if not changes:
        raise RequestInvalid("Nothing to set.", hint="Give at least one limit, e.g. --max-running 2.")
    with database_errors():
        change_limits(store, tenant, changes, AuditContext(tenant))
        limits = get_tenant(store, tenant).limits
    out.write_json({"tenant": tenant, "limits": asdict(limits)})
    out.show(f"{tenant}: {_format_limits(limits)}")
    return Exit.DONE


@commands.command("ls")
def ls(as_json: options.AsJson = False) -> int:
    """List tenants with their limits and usage."""
    from rebase.store.tenants import get_tenant, list_tenants

    out, store = Output(as_json=as_json), open_store(Settings())
    with database_errors():
        tenants = [get_tenant(store, tenant) for tenant in list_tenants(store)]
    out.write_json({"tenants": [asdict(tenant) for tenant in tenants]})
    table = Table("tenant", "keys", "running", "open", "Hub token", "limits", box=None, pad_edge=False)
    for info in tenants:
        counts = (str(info.keys), str(info.jobs_running), str(info.jobs_open))
        table.add_row(
            *map(Text, (info.id, *counts, "yes" if info.hub_token else "no", _format_limits(info.limits)))
        )
    out.show(table)
    return Exit.DONE


@commands.command("show")
def show(tenant: TenantId, as_json: options.AsJson = False) -> int:
    """Show one tenant; `*` marks limits that override the settings."""
    from rebase.store.tenants import get_tenant

    out = Output(as_json=as_json)
    with database_errors():
        info = get_tenant(open_store(Settings()), tenant)
    out.write_json(asdict(info))
    out.show(f"{info.id}, since {str(info.created_at)[:19]} UTC")
    out.show(f"keys {info.keys}, jobs running {info.jobs_running}, jobs unfinished {info.jobs_open}")
    out.show(f"Hub token {'stored' if info.hub_token else 'not stored'}")
    for name, number in asdict(info.limits).items():
        mark = " *" if info.own[name] is not None else ""
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
    """Store a tenant's Hub token, encrypted. It is read from stdin or from a variable, never from an
    argument, which every process on this machine could see."""
    from rebase.store.audit import AuditContext
    from rebase.store.hub_tokens import put_tenant_token
    from rebase.store.vault import Vault

    out, settings = Output(as_json=as_json), Settings()
    token = os.environ.get(env) if env is not None else sys.stdin.readline()
    if not token or not token.strip():
        origin = f"The variable {env}" if env is not None else "stdin"
        raise RequestInvalid(
            f"{origin} contains no token.", hint="For example: rebase tenants token set acme < FILE"
        )
    with database_errors():
        put_tenant_token(
            open_store(settings), Vault.from_settings(settings), tenant, token, AuditContext(tenant)
        )
    out.write_json({"tenant": tenant, "stored": True})
    out.show("Stored.")
    return Exit.DONE


@token_commands.command("rm")
def remove_token(tenant: TenantId, as_json: options.AsJson = False) -> int:
    """Delete a tenant's Hub token."""
    from rebase.store.audit import AuditContext
    from rebase.store.hub_tokens import delete_tenant_token

    out = Output(as_json=as_json)
    with database_errors():
        delete_tenant_token(open_store(Settings()), tenant, AuditContext(tenant))
    out.write_json({"tenant": tenant, "stored": False})
    out.show("Forgotten.")
    return Exit.DONE


@commands.command("delete")
def delete(
    tenant: TenantId,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm; this cannot be undone.")] = False,
    data_only: Annotated[
        bool,
        typer.Option(
            "--data-only", help=("Delete only jobs, pools and secrets; keep keys, limits and the audit log.")
        ),
    ] = False,
    patience: Annotated[
        float,
        typer.Option("--patience", metavar="SECONDS", help="How long to wait for running jobs to stop."),
    ] = 60.0,
    as_json: options.AsJson = False,
) -> int:
    """Cancel a tenant's jobs, then delete the tenant with all of its rows."""
    from rebase.store.audit import AuditContext
    from rebase.store.tenants import delete_tenant, erase_tenant_data, revoke_all_keys

    out, store = Output(as_json=as_json), open_store(Settings())
    if not yes:
        raise CommandFailed(f"This permanently deletes what belongs to '{tenant}'.", hint="Add --yes.")
    with database_errors():
        started_at = time.monotonic()
        if not data_only:
            revoke_all_keys(store, tenant)
        _wait_for_jobs(store, tenant, out, patience)
        if data_only:
            erase_tenant_data(store, tenant, AuditContext(tenant))
        else:
            time.sleep(max(0.0, _KEY_CACHE_S - (time.monotonic() - started_at)))
            _wait_for_jobs(store, tenant, out, patience)
            delete_tenant(store, tenant, AuditContext(tenant))
    out.write_json({"deleted": tenant, "data_only": data_only})
    out.show("Deleted.")
    return Exit.DONE


def _wait_for_jobs(store: Store, tenant: str, out: Output, timeout_s: float) -> None:
    """Raises StateConflict if some are still unfinished after the time-out."""
    from rebase.store.tenants import cancel_all_jobs, count_open_jobs

    remaining, deadline = cancel_all_jobs(store, tenant), time.monotonic() + timeout_s
    if remaining:
        out.note(f"Waiting for {remaining} job(s) to stop.")
    while count_open_jobs(store, tenant):
        if time.monotonic() > deadline:
            raise StateConflict(
                f"Some jobs of '{tenant}' have not stopped after {timeout_s:g} s; they have been asked to "
                "stop.",
                hint="Run the command again.",
            )
        time.sleep(_POLL_S)


def _format_limits(limits: Limits) -> str:
    parts = [
        f"{name.replace('_', '-')} {number}" for name, number in asdict(limits).items() if number is not None
    ]
    return ", ".join(parts) or "no limits"
