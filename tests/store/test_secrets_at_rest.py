"""Hub tokens: sealed, chosen in order, wiped when their job ends, and put under a new key all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import inspect, select, text

from rebase.errors import NotFound, PublicError, RequestInvalid, SettingsInvalid
from rebase.settings import Settings
from rebase.store import api_keys as keys
from rebase.store.hub_tokens import (
    JobTokenEncryptor,
    delete_tenant_token,
    put_tenant_token,
    resolve_hub_token,
)
from rebase.store.job_events import SubmissionContext
from rebase.store.records import Claim
from rebase.store.store import Store
from rebase.store.tables.base import Base
from rebase.store.tables.jobs import JobToken
from rebase.store.vault import ENCRYPTED_COLUMNS, Vault, generate_key, rotate_encryption
from support.databases import HandClock, a_request

JOBS, TENANTS, DEPLOYMENTS = "hf_" + "j" * 34, "hf_" + "t" * 34, "hf_" + "d" * 34
OLD, NEW = generate_key(), generate_key()


def _settings(**changes: object) -> Settings:
    values = {"secret_keys": SecretStr(OLD), "hub_token": SecretStr(DEPLOYMENTS), **changes}
    return Settings(_env_file=None, **values)  # type: ignore[arg-type]


VAULT = Vault([OLD])


def _claimed(store: Store, tenant: str, token: str | None = None) -> Claim:
    keys.create_key(store, tenant, "key")
    extras = (
        SubmissionContext(encrypt_token=JobTokenEncryptor(VAULT, token).encrypt)
        if token is not None
        else SubmissionContext()
    )
    job, _ = store.submissions.submit(tenant, "convert", a_request(), context=extras)
    claim = store.queue.claim(job.id, "w", 60)
    assert claim is not None
    return claim


def _job_tokens(store: Store) -> list[str]:
    with store.db.read() as connection:
        return list(connection.scalars(select(JobToken.job_id)))


def test_a_jobs_own_token_comes_before_its_tenants_and_that_before_the_deployments(store: Store) -> None:
    with_own, without = _claimed(store, "acme", JOBS), _claimed(store, "acme")
    put_tenant_token(store, VAULT, "acme", TENANTS, None)

    assert resolve_hub_token(store, _settings(), with_own) == JOBS
    assert resolve_hub_token(store, _settings(), without) == TENANTS
    delete_tenant_token(store, "acme", None)
    with pytest.raises(NotFound):
        delete_tenant_token(store, "acme", None)


def test_only_the_deployments_own_tenant_falls_back_on_its_token_unless_it_is_shared(store: Store) -> None:
    ours, theirs = _claimed(store, "default"), _claimed(store, "acme")

    assert resolve_hub_token(store, _settings(), ours) == DEPLOYMENTS
    assert resolve_hub_token(store, _settings(), theirs) is None
    assert resolve_hub_token(store, _settings(share_hub_token=True), theirs) == DEPLOYMENTS
    assert resolve_hub_token(store, _settings(hub_token=None), ours) is None


def _succeeds(store: Store, claim: Claim, _: HandClock) -> None:
    store.queue.succeed(claim, {})


def _fails(store: Store, claim: Claim, _: HandClock) -> None:
    store.queue.fail(claim, PublicError(code="x", message="x"))


def _rejected(store: Store, claim: Claim, _: HandClock) -> None:
    store.queue.reject(claim, PublicError(code="x", message="x"))


def _cancelled(store: Store, claim: Claim, _: HandClock) -> None:
    store.jobs.cancel(claim.tenant_id, claim.job_id)
    store.queue.mark_cancelled(claim)


def _cancelled_while_waiting(store: Store, claim: Claim, _: HandClock) -> None:
    store.queue.fail(claim, PublicError(code="x", message="x"), retry_in_s=60)
    store.jobs.cancel(claim.tenant_id, claim.job_id)


def _dies_too_often(store: Store, claim: Claim, clock: HandClock) -> None:
    for _ in range(3):
        clock.move(61)
        store.outbox.reap()
        store.queue.claim(claim.job_id, "w", 60)


@pytest.mark.parametrize(
    "end", [_succeeds, _fails, _rejected, _cancelled, _cancelled_while_waiting, _dies_too_often]
)
def test_however_a_job_ends_its_token_is_gone(
    store: Store, clock: HandClock, end: Callable[[Store, Claim, HandClock], None]
) -> None:
    claim = _claimed(store, "acme", JOBS)
    assert _job_tokens(store) == [claim.job_id]

    end(store, claim, clock)

    assert store.jobs.get("acme", claim.job_id).is_done
    assert _job_tokens(store) == []


def test_a_job_that_waits_for_another_attempt_keeps_its_token(store: Store) -> None:
    claim = _claimed(store, "acme", JOBS)
    store.queue.fail(claim, PublicError(code="x", message="x"), retry_in_s=60)

    assert _job_tokens(store) == [claim.job_id]


def test_a_retry_may_bring_a_token_of_its_own(store: Store) -> None:
    claim = _claimed(store, "acme", JOBS)
    store.queue.fail(claim, PublicError(code="x", message="x"))
    store.jobs.retry(
        "acme",
        claim.job_id,
        context=SubmissionContext(encrypt_token=JobTokenEncryptor(VAULT, TENANTS).encrypt),
    )

    assert resolve_hub_token(store, _settings(), claim) == TENANTS


def test_a_token_that_was_copied_into_another_tenants_row_does_not_open(store: Store) -> None:
    claim = _claimed(store, "acme")
    keys.create_key(store, "rival", "key")
    put_tenant_token(store, VAULT, "rival", TENANTS, None)
    with store.db.write() as connection:
        connection.execute(text("UPDATE hub_tokens SET tenant_id = 'acme'"))

    with pytest.raises(SettingsInvalid, match="belongs to another record") as refused:
        resolve_hub_token(store, _settings(), claim)
    assert TENANTS not in str(refused.value)


def test_every_secret_is_put_under_the_new_key_and_the_old_one_can_go(store: Store) -> None:
    claim = _claimed(store, "acme", JOBS)
    put_tenant_token(store, VAULT, "acme", TENANTS, None)

    assert rotate_encryption(store.db, Vault([NEW, OLD])) == 2

    only_new = _settings(secret_keys=SecretStr(NEW))
    assert resolve_hub_token(store, only_new, claim) == JOBS
    with pytest.raises(SettingsInvalid):
        resolve_hub_token(store, _settings(), claim)


def test_a_rotation_that_cannot_open_everything_changes_nothing(store: Store) -> None:
    claim = _claimed(store, "acme", JOBS)
    put_tenant_token(store, Vault([NEW]), "acme", TENANTS, None)

    with pytest.raises(SettingsInvalid, match="'hub_tokens'"):
        rotate_encryption(store.db, Vault([generate_key(), OLD]))
    assert resolve_hub_token(store, _settings(), claim) == JOBS


def test_every_column_with_sealed_secrets_is_on_the_list(store: Store) -> None:
    found = {
        (table.name, column.name)
        for table in Base.metadata.sorted_tables
        for column in table.c
        if column.name == "sealed" or column.name.startswith("sealed_") or column.name.endswith("_sealed")
    }

    assert found == set(ENCRYPTED_COLUMNS)
    assert {table for table, _ in ENCRYPTED_COLUMNS} <= set(inspect(store.db.engine).get_table_names())


@pytest.mark.parametrize("token", ["", "  ", "a b", "ü" * 9, "x" * 513, "tab\tinside"])
def test_what_is_no_token_is_refused_without_being_quoted(store: Store, token: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        put_tenant_token(store, VAULT, "default", token, None)
    if token.strip():
        assert token.strip() not in str(refused.value)


def test_on_a_database_server_a_secret_without_a_key_to_seal_it_is_refused(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, database_url="postgresql://nowhere/x", home=tmp_path)
    with pytest.raises(SettingsInvalid, match="REBASE_SECRET_KEYS"):
        Vault.from_settings(settings)


def test_a_sealer_shows_neither_token_nor_key() -> None:
    assert JOBS not in repr(JobTokenEncryptor(VAULT, JOBS).encrypt)
    assert OLD not in repr(JobTokenEncryptor(VAULT, JOBS))
