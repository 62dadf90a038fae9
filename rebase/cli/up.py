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
from rebase.cli.exits import CommandFailed, Exit
from rebase.cli.output import Output
from rebase.settings import Settings
from rebase.stack.hub_folder import examples_folder, seed
from rebase.stack.stack import Place, Stack, free_port

Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Default: 8000. 0 takes any free one.")
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
        typer.Option("--online", help="Use the model Hub (HF_ENDPOINT, REBASE_HUB_TOKEN), no local folder."),
    ] = False,
) -> int:
    """Start API, worker and courier here: SQLite, disk cache, local hub folder. Ctrl-C stops all of it."""
    out = Output()
    place = choose_place(port=port, home=home, hub=hub, online=online)
    with running(place, out) as stack:
        out.show(
            f"Rebase serves at {place.url}",
            f"  hub   {place.hub or 'the model Hub'}",
            f"  data  {place.home}",
        )
        out.note("Ctrl-C stops it.")
        stack.serve()
        out.note("Stopping.")
    return Exit.DONE


def choose_place(*, port: int | None, home: Path | None, hub: Path | None, online: bool = False) -> Place:
    """Where the stack runs, from options and settings. Raises CommandFailed (port in use, contradictions)."""
    settings = Settings(home=home) if home is not None else Settings()
    if online and (hub is not None or settings.hub_dir is not None):
        raise CommandFailed(
            "--online and a local hub folder exclude each other.", hint="Unset REBASE_HUB_DIR."
        )
    folder = None if online else (hub or settings.hub_dir or settings.resolved_home / "hub").absolute()
    chosen = free_port(settings.host, settings.port if port is None else port)
    if hub is None and settings.hub_dir is None and folder is not None:
        examples = examples_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if examples is not None:
            seed(folder, examples)
    return Place(settings.resolved_home, folder, settings.host, chosen)


@contextmanager
def running(place: Place, out: Output) -> Iterator[Stack]:
    """A started stack that is stopped at the end of the block, however it ends; Ctrl-C and SIGTERM set
    `stopping`."""
    stack = Stack(place, out.note)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stack.stopping.set()
        if stack.interruptible:
            stack.interruptible = False
            raise KeyboardInterrupt

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with stack:
            out.note("Starting the API, the worker and the courier.")
            stack.start()
            yield stack
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
