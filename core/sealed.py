"""Every column that holds a sealed secret, and how all of them are put under the newest key."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from core.db import Database
from core.errors import SettingsInvalid
from core.tables.base import Base
from core.vault import Vault

# (table, column). Whoever adds a column that `core.vault` seals adds it here, or its secrets are lost when an
# old key is retired; a test looks for columns of that name.
SEALED: tuple[tuple[str, str], ...] = (
    ("hub_tokens", "sealed"),
    ("job_tokens", "sealed"),
    ("signing_secrets", "sealed"),
)


def reseal_all(db: Database, vault: Vault) -> int:
    """Put every stored secret under the vault's newest key; how many there are.

    All or nothing: where one cannot be opened, SettingsInvalid names its table and nothing is changed.
    """
    with db.write() as connection:
        return sum(_reseal(connection, vault, table, column) for table, column in SEALED)


def _reseal(connection: Connection, vault: Vault, table_name: str, column_name: str) -> int:
    table = Base.metadata.tables[table_name]
    column = table.c[column_name]
    keys = list(table.primary_key.columns)
    rows = connection.execute(select(*keys, column).where(column.is_not(None)).with_for_update()).all()
    for row in rows:
        *identity, sealed = row
        try:
            fresh = vault.reseal(sealed)
        except SettingsInvalid as exc:
            exc.message = f"A secret in '{table_name}' cannot be opened with the keys in REBASE_SECRET_KEYS."
            exc.args = (exc.message,)
            exc.hint = "Put the key that it was stored with behind the new one. Nothing was changed."
            raise
        same = [key == value for key, value in zip(keys, identity, strict=True)]
        connection.execute(update(table).where(*same).values({column_name: fresh}))
    return len(rows)
