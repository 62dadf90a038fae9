"""Every column that holds a sealed secret, and how all of them are put under the newest key."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from core.db import Database
from core.errors import SettingsInvalid
from core.tables.base import Base
from core.vault import Vault

# (table, column). Whoever adds a column that `core.vault` seals adds it here, or its secrets are lost when an
# old key is retired; a test looks for columns of that name.
ENCRYPTED_COLUMNS: tuple[tuple[str, str], ...] = (
    ("hub_tokens", "sealed"),
    ("job_tokens", "sealed"),
    ("signing_secrets", "sealed"),
)


def rotate_encryption(db: Database, vault: Vault) -> int:
    """Put every stored secret under the vault's newest key; how many there are.

    All or nothing: where one cannot be opened, SettingsInvalid names its table and nothing is changed.
    """
    with db.write() as connection:
        return sum(_rotate_column(connection, vault, table, column) for table, column in ENCRYPTED_COLUMNS)


def _rotate_column(connection: Connection, vault: Vault, table_name: str, column_name: str) -> int:
    table = Base.metadata.tables[table_name]
    column = table.c[column_name]
    keys = list(table.primary_key.columns)
    rows = connection.execute(select(*keys, column).where(column.is_not(None)).with_for_update()).all()
    for row in rows:
        *key_values, ciphertext = row
        try:
            reencrypted = vault.reencrypt(ciphertext)
        except SettingsInvalid as exc:
            exc.message = f"A secret in '{table_name}' cannot be opened with the keys in REBASE_SECRET_KEYS."
            exc.args = (exc.message,)
            exc.hint = "Put the key that it was stored with behind the new one. Nothing was changed."
            raise
        conditions = [key == value for key, value in zip(keys, key_values, strict=True)]
        connection.execute(update(table).where(*conditions).values({column_name: reencrypted}))
    return len(rows)
