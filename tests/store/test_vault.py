"""Secrets at rest open only with a key that the database does not hold, and only where they belong."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rebase.errors import SettingsInvalid
from rebase.settings import Settings
from rebase.store.vault import Vault, generate_key


def test_a_sealed_secret_opens_for_its_purpose_and_shows_nothing_of_itself() -> None:
    vault = Vault([generate_key()])
    sealed = vault.encrypt("hub_token/acme", "hf_secret")

    assert "hf_secret" not in sealed
    assert vault.decrypt("hub_token/acme", sealed) == "hf_secret"
    assert vault.encrypt("hub_token/acme", "hf_secret") != sealed


def test_a_secret_copied_into_another_tenants_row_does_not_open_there() -> None:
    vault = Vault([generate_key()])
    sealed = vault.encrypt("hub_token/acme", "hf_secret")

    with pytest.raises(SettingsInvalid, match="belongs to another record"):
        vault.decrypt("hub_token/rival", sealed)


def test_after_a_rotation_the_old_key_is_no_longer_needed() -> None:
    old, new = generate_key(), generate_key()
    sealed = Vault([old]).encrypt("p", "s")

    both = Vault([new, old])
    moved = both.reencrypt(sealed)

    assert both.decrypt("p", sealed) == Vault([new]).decrypt("p", moved) == "s"
    with pytest.raises(SettingsInvalid, match="cannot be decrypted"):
        Vault([new]).decrypt("p", sealed)


def test_keys_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(SettingsInvalid, match="REBASE_SECRET_KEYS"):
        Vault(["short"])


def test_an_embedded_deployment_keeps_one_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    sealed = Vault.from_settings(settings).encrypt("p", "s")

    assert Vault.from_settings(settings).decrypt("p", sealed) == "s"
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


def test_threads_that_need_the_first_key_at_once_get_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, linking = os.link, threading.Barrier(4)

    def all_at_once(draft: str, path: Path) -> None:
        linking.wait(10)
        link(draft, path)

    monkeypatch.setattr(os, "link", all_at_once)
    settings = Settings(_env_file=None, home=tmp_path)
    with ThreadPoolExecutor(4) as threads:
        sealed = list(threads.map(lambda n: Vault.from_settings(settings).encrypt("p", str(n)), range(4)))

    assert [Vault.from_settings(settings).decrypt("p", one) for one in sealed] == ["0", "1", "2", "3"]
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


def test_a_deployment_on_a_database_server_must_be_given_its_key(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path, database_url="postgresql://db/rebase")
    with pytest.raises(SettingsInvalid, match="REBASE_SECRET_KEYS is not set"):
        Vault.from_settings(settings)
    key = generate_key()
    given = settings.model_copy(update={"secret_keys": Settings(_env_file=None, secret_keys=key).secret_keys})
    assert Vault.from_settings(given).decrypt("p", Vault([key]).encrypt("p", "s")) == "s"
