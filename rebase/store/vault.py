"""Secrets at rest: Hub tokens and signing secrets, encrypted with a key that is not in the database.

Fernet (AES-128-CBC with HMAC-SHA256, from the library `cryptography`). A ciphertext is bound to its purpose,
so that a secret copied into another row cannot be decrypted there. Several keys may be given: the first one
encrypts and all of them decrypt, which allows key rotation (`reencrypt`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Connection, select, update

from rebase.errors import SettingsInvalid
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.tables.base import Base

_KEY_HINT = (
    "Generate a key with 'rebase secrets key' and set REBASE_SECRET_KEYS for the API and every worker."
)


class Vault:
    """Encrypts and decrypts short texts. `keys`: URL-safe base64 of 32 bytes each, newest first."""

    def __init__(self, keys: Sequence[str]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError as exc:
            raise SettingsInvalid(
                "REBASE_SECRET_KEYS contains a value that is not 32 bytes of URL-safe base64.", hint=_KEY_HINT
            ) from exc

    @classmethod
    def from_settings(cls, settings: Settings) -> Vault:
        """The deployment's vault, with the configured keys or an embedded deployment's own key file.

        Raises SettingsInvalid for invalid keys, and if a deployment on a database server has none.
        """
        configured = settings.secret_keys.get_secret_value() if settings.secret_keys else ""
        keys = [key.strip() for key in configured.split(",") if key.strip()]
        if keys:
            return cls(keys)
        if not settings.resolved_database_url.startswith("sqlite"):
            raise SettingsInvalid("Secrets cannot be stored: REBASE_SECRET_KEYS is not set.", hint=_KEY_HINT)
        return cls([_load_or_create_key(settings.resolved_home / "secret.key")])

    def encrypt(self, purpose: str, secret: str) -> str:
        """The ciphertext to store. `purpose` binds it to its place, such as `hub_token/acme`; not secret."""
        return self._fernet.encrypt(f"{purpose}\0{secret}".encode()).decode()

    def decrypt(self, purpose: str, ciphertext: str) -> str:
        """The secret. Raises SettingsInvalid if no key decrypts it or its purpose was a different one."""
        try:
            stored_purpose, _, secret = self._fernet.decrypt(ciphertext).decode().partition("\0")
        except InvalidToken as exc:
            raise SettingsInvalid(
                "A stored secret cannot be decrypted with the keys in REBASE_SECRET_KEYS.",
                hint="Add the key that encrypted it to the new one, or store the secret again.",
            ) from exc
        if stored_purpose != purpose:
            raise SettingsInvalid("A stored secret belongs to another record and was not decrypted.")
        return secret

    def reencrypt(self, ciphertext: str) -> str:
        """The same secret under the newest key. Raises SettingsInvalid if no key decrypts it."""
        try:
            return self._fernet.rotate(ciphertext).decode()
        except InvalidToken as exc:
            raise SettingsInvalid(
                "A stored secret cannot be decrypted with the keys in REBASE_SECRET_KEYS."
            ) from exc


def generate_key() -> str:
    """A new random key for REBASE_SECRET_KEYS."""
    return Fernet.generate_key().decode()


def _load_or_create_key(path: Path) -> str:
    """The key in this file, which is created (readable by its owner alone) if it does not exist.

    The file appears atomically: processes that start together must end up with the same key, or secrets
    encrypted by one could not be decrypted by the others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # A unique draft: other threads, or containers whose processes share a PID, would overwrite a shared
        # draft after it was linked.
        fd, draft = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # readable by its owner alone
        with os.fdopen(fd, "w") as file:
            file.write(generate_key())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            Path(draft).unlink()
    return path.read_text().strip()


# (table, column). A new column with encrypted secrets must be listed here, or its secrets are lost when an
# old key is retired; a test looks for such columns by name.
ENCRYPTED_COLUMNS: tuple[tuple[str, str], ...] = (
    ("hub_tokens", "sealed"),
    ("job_tokens", "sealed"),
    ("signing_secrets", "sealed"),
)


def rotate_encryption(db: Database, vault: Vault) -> int:
    """Re-encrypt every stored secret under the vault's newest key; returns how many.

    All or nothing: if one cannot be decrypted, SettingsInvalid names its table and nothing is changed.
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
            exc.message = (
                f"A secret in '{table_name}' cannot be decrypted with the keys in REBASE_SECRET_KEYS."
            )
            exc.args = (exc.message,)
            exc.hint = "Add the key that encrypted it after the new one. Nothing was changed."
            raise
        conditions = [key == value for key, value in zip(keys, key_values, strict=True)]
        connection.execute(update(table).where(*conditions).values({column_name: reencrypted}))
    return len(rows)
