"""`rebase demo`: the main job on the bundled example, start to finish, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.exits import CommandFailed, Exit
from rebase.cli.output import Output
from rebase.cli.up import Port, choose_place, running
from rebase.demo import Story, tell
from rebase.settings import Settings
from rebase.stack.hub_folder import examples_folder


def command(
    serve: Annotated[bool, typer.Option("--serve", help="Keep serving afterwards, until Ctrl-C.")] = False,
    port: Port = None,
    home: options.Home = None,
) -> int:
    """Start the stack, move the bundled adapter to the bundled new release, and show what that was worth."""
    out = Output()
    examples = examples_folder()
    if examples is None:
        raise CommandFailed("The demo reads the examples of a checkout; this installation has none.")
    settings = Settings(home=home) if home is not None else Settings()
    # Without --serve the demo is a check: it must not get in the way of a stack that somebody is using.
    folder = settings.resolved_home if serve or home is not None else settings.resolved_home / "demo"
    wished = port if port is not None or serve else 0
    place = choose_place(port=wished, home=folder, hub=None)
    if place.hub is None or not (place.hub / Path(Story.ADAPTER)).is_dir():
        raise CommandFailed(
            f"{Story.ADAPTER} is not in the hub folder {place.hub}.", hint="Unset REBASE_HUB_DIR."
        )
    with running(place, out) as stack:
        out.show(f"Rebase serves at {place.url}")
        kept = tell(place, examples, out)
        if serve:
            out.show("", f"Still serving at {place.url}  (logs: {place.home / 'logs'})")
            out.show(f"  the API     {place.url}/docs", f"  every job   rebase jobs --url {place.url}")
            out.note("Ctrl-C stops it.")
            stack.serve()
            out.note("Stopping.")
    return Exit.DONE if kept else Exit.FAILED
