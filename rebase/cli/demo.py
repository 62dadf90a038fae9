"""`rebase demo`: the main job on the bundled example, start to finish, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rebase.cli import options
from rebase.cli.exits import CommandFailed, Exit
from rebase.cli.output import Output
from rebase.cli.up import Port, build_stack_config, run_stack
from rebase.demo import Story, run_demo
from rebase.settings import Settings
from rebase.stack.hub_folder import find_examples_folder


def command(
    serve: Annotated[bool, typer.Option("--serve", help="Keep serving afterwards, until Ctrl-C.")] = False,
    port: Port = None,
    home: options.Home = None,
) -> int:
    """Start the stack, move the bundled adapter to the bundled new release, and show what that was worth."""
    out = Output()
    examples = find_examples_folder()
    if examples is None:
        raise CommandFailed("The demo reads the examples of a checkout; this installation has none.")
    settings = Settings(home=home) if home is not None else Settings()
    # Without --serve the demo is a check: it must not get in the way of a stack that somebody is using.
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
