"""`rebase secrets`: the keys that stored secrets are encrypted with."""

from __future__ import annotations

import typer

from rebase.cli import options
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.cli.store import open_store
from rebase.settings import Settings
from rebase.stack.database import database_errors

secret_commands = typer.Typer(help="Keys for secrets at rest (REBASE_SECRET_KEYS).", no_args_is_help=True)


@secret_commands.command("key")
def print_new_key(as_json: options.AsJson = False) -> int:
    """Print a fresh key for REBASE_SECRET_KEYS. Nothing is stored."""
    from rebase.store.vault import generate_key

    out, new_key = Output(as_json=as_json), generate_key()
    out.write_json({"key": new_key})
    out.show(new_key)
    out.note("Set REBASE_SECRET_KEYS to it, for the API and every worker. To rotate: NEW,OLD.")
    return Exit.DONE


@secret_commands.command("rotate")
def rotate_keys(as_json: options.AsJson = False) -> int:
    """Encrypt every stored secret with the first key of REBASE_SECRET_KEYS; the others can go afterwards."""
    from rebase.store.vault import Vault, rotate_encryption

    out, settings = Output(as_json=as_json), Settings()
    with database_errors():
        count = rotate_encryption(open_store(settings).db, Vault.from_settings(settings))
    out.write_json({"resealed": count})
    out.show(f"{count} secret(s) are under the newest key now.")
    return Exit.DONE
