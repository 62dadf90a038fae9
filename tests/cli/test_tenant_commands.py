"""`rebase keys`, `tenants`, `secrets` and `audit`, beside a database of their own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from sqlalchemy import text

from rebase.cli import tenants
from rebase.settings import Settings
from rebase.store.database import Database
from rebase.store.hub_tokens import resolve_hub_token
from rebase.store.vault import Vault
from support.command import Command
from support.running_service import RunningService

TOKEN = "hf_" + "Zz" * 17


@pytest.fixture
def home(rebase: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A migrated database in a home of its own, with a tenant `acme`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REBASE_HOME", str(tmp_path))
    for name in ("REBASE_DATABASE_URL", "REBASE_SECRET_KEYS"):
        monkeypatch.delenv(name, raising=False)
    assert rebase("migrate").code == 0
    assert rebase("keys", "create", "--tenant", "acme", "--scope", "admin").code == 0
    return tmp_path


def _sealed(home: Path) -> str:
    db = Database.open(f"sqlite:///{home / 'rebase.db'}")
    with db.read() as connection:
        found: str = connection.execute(text("SELECT sealed FROM hub_tokens")).scalar_one()
    db.close()
    return found


@pytest.mark.usefixtures("home")
def test_a_key_is_made_with_scope_and_life_listed_rotated_and_revoked(rebase: Command) -> None:
    made = json.loads(
        rebase("keys", "create", "--tenant", "acme", "--scope", "read", "--expires-in", "90d", "--json").out
    )
    assert (made["scope"], made["tenant"]) == ("read", "acme")
    assert made["expires_at"] is not None
    turned = json.loads(rebase("keys", "rotate", made["id"], "--overlap", "1h", "--json").out)
    assert turned["key"] != made["key"]
    listed = rebase("keys", "ls", "--tenant", "acme")
    assert "read" in listed.out
    assert made["key"] not in listed.out
    assert rebase("keys", "revoke", turned["id"]).code == 0
    again = rebase("keys", "rotate", turned["id"])
    assert (again.code, "has expired or was revoked" in again.err) == (1, True)
    assert rebase("keys", "create", "--expires-in", "soon").code == 2


@pytest.mark.usefixtures("home")
def test_limits_are_set_shown_and_taken_back(rebase: Command) -> None:
    done = rebase("tenants", "set", "acme", "--max-running", "2", "--jobs-per-day", "500")
    assert done.out == "acme: max-running 2, jobs-per-day 500\n"
    assert "max-running: 2 *" in rebase("tenants", "show", "acme").out
    assert "max-running 2" in rebase("tenants", "ls").out
    back = json.loads(rebase("tenants", "set", "acme", "--max-running", "default", "--json").out)
    assert back["limits"]["max_running"] is None
    for arguments, code, said in (
        (["set", "acme"], 2, "Nothing to set"),
        (["set", "acme", "--max-running", "0"], 2, "from 1"),
        (["set", "acme", "--max-running", "many"], 2, "not a limit"),
        (["set", "nobody", "--max-running", "1"], 1, "no tenant"),
        (["show", "nobody"], 1, "no tenant"),
    ):
        refused = rebase("tenants", *arguments)
        assert (refused.code, said in refused.err) == (code, True), refused.err


def test_a_token_is_read_from_stdin_or_a_variable_and_never_from_the_arguments(
    rebase: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rebase("tenants", "token", "set", "acme", TOKEN).code == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    done = rebase("tenants", "token", "set", "acme")
    assert (done.code, done.out) == (0, "Stored.\n")
    vault = Vault.from_settings(Settings(_env_file=None, home=home))
    assert vault.decrypt("hub_token/acme", _sealed(home)) == TOKEN

    monkeypatch.setenv("MY_TOKEN", TOKEN[::-1])
    assert rebase("tenants", "token", "set", "acme", "--env", "MY_TOKEN").code == 0
    assert vault.decrypt("hub_token/acme", _sealed(home)) == TOKEN[::-1]
    assert rebase("tenants", "token", "set", "acme", "--env", "NOT_SET").code == 2
    assert "stored" in rebase("tenants", "show", "acme").out
    assert rebase("tenants", "token", "rm", "acme").code == 0
    assert rebase("tenants", "token", "rm", "acme").code == 1


def test_a_jobs_own_token_is_taken_from_a_variable(
    at_service: RunningService, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    done = rebase("convert", "acme/lora", "--target", "acme/new", "--hub-token-env", "MY_TOKEN", "--json")
    claim = at_service.store.queue.claim(json.loads(done.out)["id"], "tester", 60.0)
    assert claim is not None
    settings = Settings(_env_file=None, home=at_service.home)

    assert resolve_hub_token(at_service.store, settings, claim) == TOKEN
    assert TOKEN not in done.out
    at_service.store.queue.succeed(claim, {})
    assert rebase("convert", "acme/lora", "--target", "acme/new", "--hub-token-env", "NO_SUCH").code == 2


def test_secrets_move_from_the_key_file_to_a_key_of_the_settings(
    rebase: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    rebase("tenants", "token", "set", "acme", "--env", "MY_TOKEN")
    fresh = rebase("secrets", "key").out.strip()
    monkeypatch.setenv("REBASE_SECRET_KEYS", fresh)
    refused = rebase("secrets", "rotate")
    assert (refused.code, "hub_tokens" in refused.err) == (1, True)

    monkeypatch.setenv("REBASE_SECRET_KEYS", f"{fresh},{(home / 'secret.key').read_text()}")
    assert rebase("secrets", "rotate").out == "1 secret(s) are now encrypted with the newest key.\n"
    assert Vault([fresh]).decrypt("hub_token/acme", _sealed(home)) == TOKEN


@pytest.mark.usefixtures("home")
def test_the_log_shows_what_the_commands_did(rebase: Command) -> None:
    rebase("tenants", "set", "acme", "--max-running", "2")
    lines = json.loads(rebase("audit", "--tenant", "acme", "--json").out)["lines"]

    assert [line["action"] for line in lines] == ["tenant.limits", "key.created"]
    assert "command line" in rebase("audit", "--tenant", "acme").out


@pytest.mark.usefixtures("home")
def test_a_tenant_is_deleted_when_asked_twice(rebase: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "_KEY_CACHE_S", 0.0)
    assert "Add --yes" in rebase("tenants", "delete", "acme").err
    assert rebase("tenants", "delete", "acme", "--data-only", "--yes").code == 0
    assert "acme" in rebase("keys", "ls").out
    assert rebase("tenants", "delete", "acme", "--yes").code == 0
    assert rebase("keys", "ls").out == "No keys.\n"
    assert "tenant.deleted" in rebase("audit").out
    assert rebase("tenants", "delete", "default", "--yes").code == 1
    assert rebase("tenants", "delete", "nobody", "--yes").code == 1
