"""`rebase callbacks secret|ls|show|replay`: callbacks of a running service."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.follow import open_client
from rebase.cli.output import Output
from rebase.cli.tables import format_field, make_id_table
from rebase.client.models import Delivery, SigningSecret
from rebase.errors import StateConflict
from rebase.schemas.callbacks import DeliveryState

commands = typer.Typer(
    help="Signed callbacks when a job ends: secrets, deliveries, replay.", no_args_is_help=True
)

DeliveryId = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id (its webhook-id).")]
_STYLES = {"delivered": "green", "failed": "red", "stopped": "yellow"}


@commands.command("secret")
def show_secret(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Replace the secret; the previous one keeps signing for a while.")
    ] = False,
    overlap_s: Annotated[
        int | None,
        typer.Option(
            "--overlap",
            min=0,
            metavar="SECONDS",
            help=("How long the previous secret keeps signing; 0 retires it at once."),
        ),
    ] = None,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Create the signing secret and print it, once. An existing one is replaced only with --rotate."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        if not rotate and (existing := client.list_signing_secrets()):
            raise StateConflict(
                f"There is already a signing secret, created on {_format_time(existing[0].created_at)} "
                "UTC; it cannot be shown again.",
                hint="--rotate creates a new one.",
            )
        new_secret = client.rotate_signing_secret(overlap_s=overlap_s)
        older = client.list_signing_secrets()[1:]
    out.write_json(
        {**new_secret.model_dump(mode="json"), "older": [one.model_dump(mode="json") for one in older]}
    )
    out.show(str(new_secret.secret))
    out.note("Save it now; it cannot be shown again. Receivers verify signatures with it.")
    for line in _describe_older(older):
        out.note(line)
    return Exit.DONE


@commands.command("ls")
def ls(
    state: Annotated[
        DeliveryState | None, typer.Option("--state", help="Only deliveries in this state.")
    ] = None,
    job: Annotated[
        str | None, typer.Option("--job", metavar="ID", help=("Only deliveries of this job."))
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number to list, newest first.")] = 20,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List deliveries, newest first, with the result of the last attempt."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        if job is None:
            deliveries = list(islice(client.list_deliveries(state=state.value if state else None), limit))
        else:
            newest_first = reversed(client.list_job_deliveries(job))
            deliveries = [one for one in newest_first if state is None or one.state == state.value][:limit]
    out.write_json({"deliveries": [one.model_dump(mode="json") for one in deliveries]})
    if not deliveries:
        out.show("No deliveries.")
        return Exit.DONE
    table = make_id_table("event", "state", "attempts", "last response", "url", "created (UTC)")
    for one in deliveries:
        cells = (
            one.event,
            str(one.attempts),
            _format_last_attempt(one),
            one.url,
            _format_time(one.created_at),
        )
        event, attempts, last, receiver_url, created = map(Text, cells)
        table.add_row(
            one.id, event, Text(one.state, _STYLES.get(one.state, "")), attempts, last, receiver_url, created
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
        delivery = client.get_delivery(delivery_id)
    out.write_json(delivery.model_dump(mode="json"))
    out.show(*_format_delivery(delivery))
    return Exit.DONE


@commands.command("replay")
def replay(
    delivery_id: DeliveryId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Send a delivery again now, under the same webhook-id."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        delivery = client.replay_delivery(delivery_id)
    out.write_json(delivery.model_dump(mode="json"))
    out.show(*_format_delivery(delivery))
    out.note(f"Check it again: rebase callbacks show {delivery.id}")
    return Exit.DONE


def _format_delivery(delivery: Delivery) -> list[RenderableType]:
    lines: list[RenderableType] = [
        format_field("delivery", delivery.id),
        format_field("event", f"{delivery.event} of job {delivery.job_id}"),
        format_field("url", delivery.url),
        format_field("state", delivery.state, _STYLES.get(delivery.state, "")),
    ]
    if delivery.next_attempt_at is not None:
        lines.append(format_field("next", f"{_format_time(delivery.next_attempt_at)} UTC"))
    for attempt in delivery.log:
        text = attempt.detail or (f"accepted with {attempt.status}" if attempt.status else "")
        lines.append(format_field(f"try {attempt.number}", f"{_format_time(attempt.at)}  {text}"))
    return lines


def _format_last_attempt(delivery: Delivery) -> str:
    if not delivery.log:
        return ""
    return str(delivery.log[-1].status or delivery.log[-1].reason or "")


def _describe_older(secrets: list[SigningSecret]) -> list[str]:
    return [
        f"The secret of {_format_time(one.created_at)} keeps signing until {_format_time(one.retires_at)} "
        "UTC."
        for one in secrets
    ]


def _format_time(at: object) -> str:
    return str(at or "")[:19]
