"""`rebase demo`: one conversion that should work, with its measured benefit, and one that should be
rejected."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.follow import follow_job
from rebase.cli.output import Output
from rebase.cli.request import build_request
from rebase.cli.tables import build_diagnostics_table, format_job
from rebase.cli.up import Port, build_stack_config, run_stack
from rebase.client.http import RebaseClient
from rebase.client.models import Job
from rebase.errors import CommandFailed
from rebase.hub.local import LocalHub
from rebase.localstack.stack import StackConfig, find_examples_folder
from rebase.schemas.repos import RepoRef
from rebase.settings import Settings

_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "rebase_report.json")


class Story:
    """The repos of examples/hub and their roles."""

    ADAPTER = "tiny/harbor-sql-lora"
    SOURCE = "tiny/harbor-1"
    NEW_RELEASE = "tiny/harbor-2"
    OTHER_FAMILY = "tiny/lantern-1"
    TASK = Path("tasks/harbor-sql.jsonl")


@dataclass(frozen=True, slots=True)
class Losses:
    """Held-out loss in nats per answer token; lower is better."""

    source_with_adapter: float
    target_alone: float
    target_with_moved: float


def run_demo(config: StackConfig, examples: Path, out: Output) -> bool:
    """Run the demo on a running stack. True if every result is as expected."""
    with RebaseClient(config.url) as client:
        out.show(
            "", (f"1. Transfer {Story.ADAPTER} from {Story.SOURCE} to its new release {Story.NEW_RELEASE}")
        )
        request = build_request(adapter=Story.ADAPTER, target=Story.NEW_RELEASE)
        conversion = follow_job(client, client.convert(request), out)
        out.show(*format_job(conversion))
        if not conversion.succeeded:
            out.note(
                f"The conversion did not succeed; see {config.home / 'logs' / 'worker.log'}", style="bold red"
            )
            return False
        out.show("", build_diagnostics_table(client.get_diagnostics(conversion.id)))
        is_improvement = _check_improvement(config, examples, conversion, out)

        out.show("", f"2. Pre-check {Story.OTHER_FAMILY}: another architecture, width, depth and tokenizer")
        precheck = follow_job(
            client, client.precheck(build_request(adapter=Story.ADAPTER, target=Story.OTHER_FAMILY)), out
        )
        out.show(*format_job(precheck))
        is_doubted = precheck.verdict in {"uncertain", "incompatible"} and bool(
            (precheck.result or {}).get("reasons")
        )
        if not is_doubted:
            out.note("The pre-check was expected to doubt this pair and give reasons.", style="bold red")
        return is_improvement and is_doubted


def _check_improvement(config: StackConfig, examples: Path, conversion: Job, out: Output) -> bool:
    """Check that the expected files exist and that the transferred adapter is better than none."""
    folder = Path((conversion.result or {})["output"]["url"])
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        out.note(f"{folder} lacks {', '.join(missing)}", style="bold red")
        return False
    out.show("", "Held-out loss (nats per answer token, lower is better)")
    losses = measure_losses(config, examples, folder)
    table = Table("", "loss", box=None, pad_edge=False, show_header=False)
    table.add_row(f"{Story.NEW_RELEASE} alone", f"{losses.target_alone:.3f}")
    table.add_row(f"{Story.NEW_RELEASE} + transferred adapter", f"{losses.target_with_moved:.3f}")
    table.add_row(f"{Story.SOURCE} + its own adapter", f"{losses.source_with_adapter:.3f}")
    out.show(table)
    if losses.target_with_moved >= losses.target_alone:
        out.note("The transferred adapter does not improve the new release.", style="bold red")
        return False
    return True


def measure_losses(config: StackConfig, examples: Path, transferred_adapter: Path) -> Losses:
    """Evaluate the three combinations with `examples/evaluate.py` of the checkout. Loads torch."""
    if config.hub is None:
        raise ValueError("the demo requires a local hub folder")
    sys.path.insert(0, str(examples.parent))
    held_out_loss: Callable[..., Any] = importlib.import_module("examples.evaluate").held_out_loss
    importlib.import_module("transformers").logging.disable_progress_bar()
    task = examples / Story.TASK
    source, target, adapter = (
        _fetch_folder(config.hub, repo) for repo in (Story.SOURCE, Story.NEW_RELEASE, Story.ADAPTER)
    )
    return Losses(
        source_with_adapter=float(held_out_loss(source, adapter, task)),
        target_alone=float(held_out_loss(target, None, task)),
        target_with_moved=float(held_out_loss(target, transferred_adapter, task)),
    )


def _fetch_folder(hub: Path, repo_id: str) -> Path:
    """The files of a repo's main branch, in a folder that Transformers and PEFT can load."""
    local = LocalHub(hub)
    pinned = local.resolve(RepoRef(repo_id=repo_id))
    return local.fetch(pinned, next(iter(pinned.files))).parent


def command(
    serve: Annotated[bool, typer.Option("--serve", help="Keep serving afterwards, until Ctrl-C.")] = False,
    port: Port = None,
    home: options.Home = None,
) -> int:
    """Start the stack, transfer the bundled adapter to the bundled new base, and show the benefit."""
    out = Output()
    examples = find_examples_folder()
    if examples is None:
        raise CommandFailed("The demo needs the examples of a source checkout; this installation has none.")
    settings = Settings(home=home) if home is not None else Settings()
    # Without --serve the demo is a check, so it must not interfere with a stack that is in use.
    folder = settings.resolved_home if serve or home is not None else settings.resolved_home / "demo"
    requested_port = port if port is not None or serve else 0
    config = build_stack_config(port=requested_port, home=folder, hub=None)
    if config.hub is None or not (config.hub / Path(Story.ADAPTER)).is_dir():
        raise CommandFailed(
            f"{Story.ADAPTER} is not in the hub folder {config.hub}.", hint="Unset REBASE_HUB_DIR."
        )
    with run_stack(config, out) as stack:
        out.show(f"Rebase serves at {config.url}")
        succeeded = run_demo(config, examples, out)
        if serve:
            out.show("", f"Still serving at {config.url}  (logs: {config.home / 'logs'})")
            out.show(f"  the API     {config.url}/docs", f"  every job   rebase jobs --url {config.url}")
            out.note("Ctrl-C stops it.")
            stack.serve()
            out.note("Stopping.")
    return Exit.DONE if succeeded else Exit.FAILED
