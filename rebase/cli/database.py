"""`rebase migrate`: this deployment's database."""

from __future__ import annotations

from rebase.cli import options
from rebase.cli.exits import Exit
from rebase.cli.output import Output
from rebase.settings import Settings
from rebase.stack.database import migrate_database


def migrate(as_json: options.AsJson = False) -> int:
    """Bring the database of this deployment to the newest schema."""
    out = Output(as_json=as_json)
    revision = migrate_database(Settings().resolved_database_url)
    out.write_json({"revision": revision})
    out.show(f"The database is at revision {revision}.")
    return Exit.DONE
