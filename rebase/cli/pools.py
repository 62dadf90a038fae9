"""`rebase pools add|ls|show|rm`: anchor pools of a running service."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit, exit_for_code
from rebase.cli.follow import follow_job, open_client
from rebase.cli.output import Output
from rebase.cli.tables import format_error, format_field, make_id_table
from rebase.client.models import AnchorPool, Repo
from rebase.conversion.pool_files import read_pool
from rebase.schemas.states import PoolState

commands = typer.Typer(
    help="Register adapters that exist on two bases; the method anchor_ridge predicts from them.",
    no_args_is_help=True,
)

PoolId = Annotated[str, typer.Argument(metavar="ID", help="The pool's id.")]
_STYLES = {PoolState.READY.value: "green", PoolState.INVALID.value: "red"}
_COMMIT_LENGTH, _SHORT_COMMIT_LENGTH = 40, 12


@commands.command("add")
def add(
    file: Annotated[
        str, typer.Argument(metavar="FILE.json", help="The body of POST /anchor-pools; - is standard input.")
    ],
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key", metavar="KEY", help=("Idempotency key: the same key returns the same pool.")
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the validation until it ends.")] = False,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Register an anchor pool; the service reads and measures it before it is ready."""
    out = Output(as_json=as_json)
    request = read_pool(file)
    with open_client(url) as client:
        pool = client.register_pool(request, idempotency_key=idempotency_key)
        if wait:
            out.note(f"Pool {pool.id} accepted.")
            follow_job(client, client.get_job(pool.id), out)
            pool = client.get_pool(pool.id)
    out.write_json(pool.model_dump(mode="json"))
    out.show(*_format_pool(pool))
    if pool.state == PoolState.VALIDATING:
        out.note(f"Follow it: rebase status {pool.id} --wait")
    return _exit_for_pool(pool)


@commands.command("ls")
def ls(
    source: Annotated[
        str | None, typer.Option("--source", metavar="REPO", help="Only pools from this base.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="REPO", help="Only pools to this base.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number to list, newest first.")] = 20,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List anchor pools, newest first."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        pools = list(islice(client.list_pools(source=source, target=target), limit))
    out.write_json({"pools": [pool.model_dump(mode="json") for pool in pools]})
    if not pools:
        out.show("No pools.")
        return Exit.DONE
    table = make_id_table("name", "state", "anchors", "source", "target", "created (UTC)")
    for pool in pools:
        repos = [Text(pool.source.repo_id), Text(pool.target.repo_id)]
        state, created = _format_state(pool), Text(str(pool.created_at or "")[:19])
        table.add_row(pool.id, Text(pool.name or ""), state, str(pool.anchor_count), *repos, created)
    out.show(table)
    return Exit.DONE


@commands.command("show")
def show(pool_id: PoolId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False) -> int:
    """Show one anchor pool: its state, measurements and anchors."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        pool = client.get_pool(pool_id)
    out.write_json(pool.model_dump(mode="json"))
    out.show(*_format_pool(pool))
    table = Table("domain", "source", "target", box=None, pad_edge=False)
    for anchor in pool.anchors:
        table.add_row(*map(Text, (anchor.domain, _format_repo(anchor.source), _format_repo(anchor.target))))
    out.show("", table)
    return _exit_for_pool(pool)


@commands.command("rm")
def rm(pool_id: PoolId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False) -> int:
    """Delete an anchor pool; unfinished jobs that need it will fail."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        client.delete_pool(pool_id)
    out.write_json({"deleted": pool_id})
    out.show(f"Deleted {pool_id}.")
    return Exit.DONE


def _format_pool(pool: AnchorPool) -> list[RenderableType]:
    lines: list[RenderableType] = [format_field("pool", f"{pool.id}  {pool.name or ''}".rstrip())]
    lines.append(Text.assemble(format_field("state", ""), _format_state(pool)))
    lines.append(format_field("source", _format_repo(pool.source)))
    lines.append(format_field("target", _format_repo(pool.target)))
    sites = "" if pool.sites is None else f" at {pool.sites} common sites"
    lines.append(format_field("anchors", f"{pool.anchor_count}{sites}"))
    lines += [format_field("", f"{name} {value:.4g}") for name, value in sorted(pool.measurements.items())]
    lines += [format_field("warning", warning, "yellow") for warning in pool.warnings]
    return [*lines, *format_error(pool.error)]


def _format_state(pool: AnchorPool) -> Text:
    return Text(pool.state, style=_STYLES.get(pool.state, ""))


def _format_repo(repo: Repo) -> str:
    """A repo with its branch, or with its abbreviated commit."""
    revision = repo.revision[:_SHORT_COMMIT_LENGTH] if len(repo.revision) == _COMMIT_LENGTH else repo.revision
    name = repo.repo_id if revision == "main" else f"{repo.repo_id}@{revision}"
    return f"{name}:{repo.subfolder}" if repo.subfolder else name


def _exit_for_pool(pool: AnchorPool) -> Exit:
    """As for jobs: a pool that is still being validated is not a failure."""
    if pool.state != PoolState.INVALID:
        return Exit.DONE
    return exit_for_code(pool.error.code) if pool.error is not None else Exit.FAILED
