"""`rebase callbacks secret|ls|show|replay`: callbacks of a running service."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from rebase.cli import options
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.cli.tables import labelled, rows_by_id
from rebase.cli.waiting import open_client
from rebase.client.models import Delivery, SigningSecret
from rebase.errors import StateConflict
from rebase.schemas.callbacks import DeliveryState

commands = typer.Typer(
    help="Signed messages to a URL when a job ends: secrets, deliveries, replay.", no_args_is_help=True
)

DeliveryId = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, its webhook-id.")]
_STYLES = {"delivered": "green", "failed": "red", "stopped": "yellow"}


@commands.command("secret")
def secret(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Replace the secret; the one before signs along for a while.")
    ] = False,
    overlap_s: Annotated[
        int | None,
        typer.Option("--overlap", min=0, metavar="SECONDS", help="For so long; 0 ends it at once."),
    ] = None,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Make the signing secret and print it, once. Only --rotate replaces one that exists."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        if not rotate and (existing := client.signing_secrets()):
            raise StateConflict(
                f"There is a signing secret already, made on {_when(existing[0].created_at)} UTC; "
                "it cannot be shown again.",
                hint="--rotate makes a new one.",
            )
        made = client.rotate_signing_secret(overlap_s=overlap_s)
        older = client.signing_secrets()[1:]
    out.document({**made.model_dump(mode="json"), "older": [one.model_dump(mode="json") for one in older]})
    out.show(str(made.secret))
    out.note("Keep it now; it cannot be shown again. Receivers verify signatures with it.")
    for line in _older(older):
        out.note(line)
    return Exit.DONE


@commands.command("ls")
def ls(
    state: Annotated[
        DeliveryState | None, typer.Option("--state", help="Only deliveries in this state.")
    ] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="Only of this job.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")] = 20,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List deliveries, newest first, with what came of the last attempt."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        if job is None:
            found = list(islice(client.deliveries(state=state.value if state else None), limit))
        else:
            of_job = reversed(client.job_deliveries(job))
            found = [one for one in of_job if state is None or one.state == state.value][:limit]
    out.document({"deliveries": [one.model_dump(mode="json") for one in found]})
    if not found:
        out.show("No deliveries.")
        return Exit.DONE
    table = rows_by_id("event", "state", "attempts", "last answer", "url", "created (UTC)")
    for one in found:
        cells = (one.event, str(one.attempts), _last(one), one.url, _when(one.created_at))
        event, attempts, last, where, created = map(Text, cells)
        table.add_row(
            one.id, event, Text(one.state, _STYLES.get(one.state, "")), attempts, last, where, created
        )
    out.show(table)
    return Exit.DONE


@commands.command("show")
def show(
    delivery_id: DeliveryId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Show one delivery with every attempt."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        found = client.delivery(delivery_id)
    out.document(found.model_dump(mode="json"))
    out.show(*_lines(found))
    return Exit.DONE


@commands.command("replay")
def replay(
    delivery_id: DeliveryId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Send a delivery again, now, under the same webhook-id."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        found = client.replay(delivery_id)
    out.document(found.model_dump(mode="json"))
    out.show(*_lines(found))
    out.note(f"Look at it again: rebase callbacks show {found.id}")
    return Exit.DONE


def _lines(one: Delivery) -> list[RenderableType]:
    lines: list[RenderableType] = [
        labelled("delivery", one.id),
        labelled("event", f"{one.event} of job {one.job_id}"),
        labelled("url", one.url),
        labelled("state", one.state, _STYLES.get(one.state, "")),
    ]
    if one.next_attempt_at is not None:
        lines.append(labelled("next", f"{_when(one.next_attempt_at)} UTC"))
    for attempt in one.log:
        said = attempt.detail or (f"accepted with {attempt.status}" if attempt.status else "")
        lines.append(labelled(f"try {attempt.number}", f"{_when(attempt.at)}  {said}"))
    return lines


def _last(one: Delivery) -> str:
    if not one.log:
        return ""
    return str(one.log[-1].status or one.log[-1].reason or "")


def _older(secrets: list[SigningSecret]) -> list[str]:
    return [
        f"The one of {_when(one.created_at)} signs along until {_when(one.retires_at)} UTC."
        for one in secrets
    ]


def _when(at: object) -> str:
    return str(at or "")[:19]
