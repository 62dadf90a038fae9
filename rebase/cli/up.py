"""`rebase up`: the embedded stack in one process tree."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.exit_codes import Exit
from rebase.cli.output import Output
from rebase.errors import CommandFailed
from rebase.localstack.stack import Stack, StackConfig, choose_port, find_examples_folder, seed_hub
from rebase.settings import Settings

Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Default: 8000; 0 chooses a free port.")
]


def command(
    port: Port = None,
    home: options.Home = None,
    hub: Annotated[
        Path | None,
        typer.Option(
            "--hub", metavar="DIR", help="The local hub folder; default: REBASE_HUB_DIR, else hub/ in home."
        ),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(
            "--online", help=("Use the model Hub (HF_ENDPOINT, REBASE_HUB_TOKEN) instead of a local folder.")
        ),
    ] = False,
) -> int:
    """Start API, worker and callback dispatcher: SQLite, disk cache, local hub folder. Ctrl-C stops them."""
    out = Output()
    config = build_stack_config(port=port, home=home, hub=hub, online=online)
    with run_stack(config, out) as stack:
        out.show(
            f"Rebase serves at {config.url}",
            f"  hub   {config.hub or 'the model Hub'}",
            f"  data  {config.home}",
        )
        out.note("Ctrl-C stops it.")
        stack.serve()
        out.note("Stopping.")
    return Exit.DONE


def build_stack_config(
    *, port: int | None, home: Path | None, hub: Path | None, online: bool = False
) -> StackConfig:
    """The stack's configuration from options and settings. Raises CommandFailed (port in use, conflicts)."""
    settings = Settings(home=home) if home is not None else Settings()
    if online and (hub is not None or settings.hub_dir is not None):
        raise CommandFailed(
            "--online and a local hub folder cannot be combined.", hint="Unset REBASE_HUB_DIR."
        )
    hub_dir = None if online else (hub or settings.hub_dir or settings.resolved_home / "hub").absolute()
    chosen_port = choose_port(settings.host, settings.port if port is None else port)
    if hub is None and settings.hub_dir is None and hub_dir is not None:
        examples = find_examples_folder()
        hub_dir.mkdir(parents=True, exist_ok=True)
        if examples is not None:
            seed_hub(hub_dir, examples)
    return StackConfig(settings.resolved_home, hub_dir, settings.host, chosen_port)


@contextmanager
def run_stack(config: StackConfig, out: Output) -> Iterator[Stack]:
    """A running stack that is stopped at the end of the block, however it ends. Ctrl-C and SIGTERM set
    `stopping`."""
    stack = Stack(config, out.note)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stack.stopping.set()
        if stack.interruptible:
            stack.interruptible = False
            raise KeyboardInterrupt

    previous_handlers = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with stack:
            out.note("Starting the API, the worker and the callback dispatcher.")
            stack.start()
            yield stack
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
