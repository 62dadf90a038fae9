"""`rebase subscribe` and `rebase subscriptions ls|show|pause|resume|rm`."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.follow import open_client
from rebase.cli.output import Output
from rebase.cli.request import merge_evaluation, merge_field, parse_settings
from rebase.cli.tables import format_field, format_repo, make_id_table
from rebase.client.models import Subscription
from rebase.errors import RequestInvalid
from rebase.methods.params import DEFAULT_METHOD
from rebase.schemas.repos import parse_repo
from rebase.schemas.subscriptions import SubscriptionRequest, check_subscription_request
from rebase.schemas.validation import read_evaluation, validate_as

commands = typer.Typer(
    help=("Subscriptions: what to convert when a base model is released."), no_args_is_help=True
)

SubscriptionId = Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.")]
_REQUEST_FIELDS = tuple(SubscriptionRequest.model_fields)


def subscribe(
    bases: Annotated[
        str | None,
        typer.Argument(
            metavar="OWNER/PATTERN", help=("Bases by name; the name may contain * and ?; quote it.")
        ),
    ] = None,
    successors_of: Annotated[
        str | None,
        typer.Option(
            "--successors-of", metavar="REPO", help=("Instead of a pattern: later generations of this base.")
        ),
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="REPO", help=("Adapter to convert; may be repeated.")),
    ] = None,
    source: options.Source = None,
    method: options.Method = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="TEMPLATE",
            help="Default: {owner}/{adapter}--{target}. Fields: owner, adapter, target_owner, target.",
        ),
    ] = None,
    settings: options.Settings = None,
    evaluate: options.EvaluateFile = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Only `instruct` or only `base` releases.")
    ] = None,
    licences: Annotated[
        list[str] | None,
        typer.Option("--licence", metavar="NAME", help="Only releases with this licence; may be repeated."),
    ] = None,
    max_jobs: Annotated[
        int | None, typer.Option("--max-jobs", help="Maximum adapters per release; default: 50.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only run pre-checks; `rebase campaigns approve` then converts.")
    ] = False,
    on_update: Annotated[
        bool, typer.Option("--on-update", help="Convert again when the weights of a base change.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="DATE", help=("Include bases created since then; default: from now on.")
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="A name to distinguish subscriptions.")] = None,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """Convert adapters whenever a matching base is released. More guards: --set guards.max_parameters=8e9."""
    out = Output(as_json=as_json)
    body: dict[str, Any] = parse_settings(settings or (), _REQUEST_FIELDS)
    if evaluate is not None:
        body["evaluate"] = merge_evaluation(read_evaluation(evaluate), body.get("evaluate", {}))
    simple_fields = {"bases": bases, "successors_of": successors_of, "since": since, "name": name}
    body |= {key: value for key, value in simple_fields.items() if value is not None}
    body |= {key: True for key, value in (("dry_run", dry_run), ("on_update", on_update)) if value}
    body["adapters"] = [parse_repo(adapter, field="adapters") for adapter in adapters or ()]
    if not body["adapters"]:
        raise RequestInvalid(
            "No adapter is given.", hint="Add at least one: --adapter owner/name", pointer="/adapters"
        )
    if source is not None:
        merge_field(body, "source", parse_repo(source, field="source"))
    if method is not None:
        merge_field(body, "method", {"name": method})
    elif isinstance(body.get("method"), dict):
        body["method"].setdefault("name", DEFAULT_METHOD)
    if output is not None:
        merge_field(body, "output", {"repo_id": output})
    guards = {"kind": kind, "licences": licences or None, "max_jobs": max_jobs}
    merge_field(body, "guards", {key: value for key, value in guards.items() if value is not None})
    request = validate_as(SubscriptionRequest, body)
    check_subscription_request(request)
    with open_client(url) as client:
        subscription = client.subscribe(request)
    out.write_json(subscription.model_dump(mode="json"))
    out.show(*_format_subscription(subscription))
    out.note(f"Campaigns: rebase campaigns ls --subscription {subscription.id}")
    return Exit.DONE


@commands.command("ls")
def ls(
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number to list, newest first.")] = 20,
    url: options.Url = options.DEFAULT_URL,
    as_json: options.AsJson = False,
) -> int:
    """List subscriptions, newest first."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        subscriptions = list(islice(client.list_subscriptions(), limit))
    out.write_json({"subscriptions": [one.model_dump(mode="json") for one in subscriptions]})
    if not subscriptions:
        out.show("No subscriptions.")
        return Exit.DONE
    table = make_id_table("name", "releases", "adapters", "", "created (UTC)")
    for one in subscriptions:
        cells = (one.name or "", _format_bases(one), str(one.adapter_count), "paused" if one.paused else "")
        table.add_row(one.id, *map(Text, cells), Text(str(one.created_at or "")[:19]))
    out.show(table)
    return Exit.DONE


@commands.command("show")
def show(
    subscription_id: SubscriptionId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Show one subscription."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        return _show_subscription(client.get_subscription(subscription_id), out)


@commands.command("pause")
def pause(
    subscription_id: SubscriptionId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Start no campaigns until it is resumed."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        return _show_subscription(client.pause_subscription(subscription_id), out)


@commands.command("resume")
def resume(
    subscription_id: SubscriptionId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Start campaigns again; the next poll of the Hub finds what was released meanwhile."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        return _show_subscription(client.pause_subscription(subscription_id, False), out)


@commands.command("rm")
def rm(
    subscription_id: SubscriptionId, url: options.Url = options.DEFAULT_URL, as_json: options.AsJson = False
) -> int:
    """Delete a subscription; its campaigns are kept and continue."""
    out = Output(as_json=as_json)
    with open_client(url) as client:
        client.unsubscribe(subscription_id)
    out.write_json({"deleted": subscription_id})
    out.show(f"Deleted {subscription_id}.")
    return Exit.DONE


def _show_subscription(subscription: Subscription, out: Output) -> int:
    out.write_json(subscription.model_dump(mode="json"))
    out.show(*_format_subscription(subscription))
    return Exit.DONE


def _format_subscription(subscription: Subscription) -> list[RenderableType]:
    request = subscription.request
    adapters = [format_repo(adapter) for adapter in request.get("adapters", [])]
    more = f" and {len(adapters) - 3} more" if len(adapters) > 3 else ""
    lines: list[RenderableType] = [
        format_field("id", f"{subscription.id}  {subscription.name or ''}".rstrip()),
        format_field("releases", _format_bases(subscription)),
        format_field("adapters", f"{', '.join(adapters[:3])}{more}"),
        format_field("method", str((request.get("method") or {}).get("name", ""))),
        format_field("output", str((request.get("output") or {}).get("repo_id", ""))),
        format_field("since", f"{str(subscription.since or '')[:19]} UTC"),
    ]
    if request.get("dry_run"):
        lines.append(format_field("dry run", "pre-checks first"))
    return [*lines, format_field("state", "paused", "yellow")] if subscription.paused else lines


def _format_bases(subscription: Subscription) -> str:
    return subscription.bases or f"successors of {subscription.successors_of}"
