"""The command-line app: registers every command and turns any exception into a message and an exit code."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from rebase.cli import (
    admin,
    cache,
    callbacks,
    campaigns,
    convert,
    demo,
    jobs,
    keys,
    methods,
    pools,
    precheck,
    subscriptions,
    tenants,
    transfer,
    up,
)
from rebase.cli.exit_codes import Exit, exit_for_exception
from rebase.cli.output import Output
from rebase.errors import InternalError, PublicError
from rebase.redaction import scrub
from rebase.settings import Settings

app = typer.Typer(
    name="rebase",
    help="Transfer a LoRA adapter to a new base model, with evidence that it works.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 incompatible, 4 service not reachable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.command)
app.command("convert")(convert.command)
app.command("transfer")(transfer.command)
app.command("precheck")(precheck.command)
app.command("status")(jobs.status)
app.command("jobs")(jobs.list_jobs)
app.command("cancel")(jobs.cancel)
app.command("retry")(jobs.retry)
app.command("methods")(methods.command)
app.add_typer(pools.commands, name="pools")
app.add_typer(callbacks.commands, name="callbacks")
app.command("subscribe")(subscriptions.subscribe)
app.add_typer(subscriptions.commands, name="subscriptions")
app.add_typer(campaigns.commands, name="campaigns")
app.add_typer(cache.commands, name="cache")
app.add_typer(keys.commands, name="keys")
app.add_typer(tenants.commands, name="tenants")
app.add_typer(admin.secret_commands, name="secrets")
app.command("audit")(admin.show_audit_log)
app.command("migrate")(admin.migrate)
app.command("demo")(demo.command)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"rebase {installed_version('rebase-lora')}")
        raise typer.Exit


@app.callback()
def _root(
    _debug: Annotated[
        bool,
        typer.Option(
            "--debug", help=("Show the cause of an unexpected error; accepted anywhere on the command line.")
        ),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are reported, not raised."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # the reader has closed the pipe; discard the rest of the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


def _run(arguments: Sequence[str]) -> int:
    argv = list(arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    output = Output(as_json="--json" in argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        code = int(app(args=argv, prog_name="rebase", standalone_mode=False) or Exit.DONE)
        if code == Exit.INTERRUPTED:  # how the framework reports Ctrl-C
            output.note("Interrupted.")
    except TyperException as exc:
        return _report_usage_error(exc, output)
    except (KeyboardInterrupt, typer.Abort):
        output.note("Interrupted.")
        return Exit.INTERRUPTED
    except Exception as exc:
        described = exit_for_exception(exc)
        if debug:
            traceback.print_exc()
        if described is not None:
            output.error(described[1])
            return described[0]
        output.error(_build_internal_error(debug))
        return Exit.FAILED
    return code


def _report_usage_error(exc: TyperException, output: Output) -> int:
    message = exc.format_message()
    if not message:  # bare `rebase`: the help has been printed
        return Exit.USAGE
    output.error(
        PublicError(code="usage", message=message, hint="See `rebase --help` or `rebase COMMAND --help`.")
    )
    return Exit.USAGE


def _build_internal_error(debug: bool) -> PublicError:
    """One sentence for the user; the traceback goes to the log, unless it has been shown."""
    sentence = "An unexpected error occurred"
    if debug:
        return PublicError(code=InternalError.code, message=f"{sentence}; the cause is shown above.")
    try:
        log = Settings().resolved_home / "logs" / "cli.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as sink:
            sink.write(f"{datetime.now(UTC).isoformat()}\n{scrub(traceback.format_exc())}\n")
    except Exception:  # unwritable home or unreadable settings: only --debug helps then
        return PublicError(code=InternalError.code, message=f"{sentence}.", hint="--debug shows the cause.")
    return PublicError(
        code=InternalError.code,
        message=f"{sentence}; the cause is in {log}.",
        hint="--debug shows it here.",
    )
