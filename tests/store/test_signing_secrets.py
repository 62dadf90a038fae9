"""Signing secrets: made once, shown once, sealed, and replaced without a gap."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import select, update
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from rebase.errors import SettingsInvalid, StateConflict
from rebase.logging import redact_event
from rebase.store.signing_secrets import (
    MAX_SIGNING_SECRETS,
    SigningSecretRepository,
    build_signature_headers,
    generate_secret,
    sign,
)
from rebase.store.store import Store
from rebase.store.tables.callbacks import SigningSecret
from rebase.store.vault import Vault, generate_key, rotate_encryption
from support.callbacks import a_tenant, sql_text
from support.databases import HandClock

TENANT = "default"


@pytest.fixture
def vault() -> Vault:
    return Vault([generate_key()])


def secrets_of(store: Store) -> SigningSecretRepository:
    return SigningSecretRepository(store.db, store.clock)


def test_the_reference_library_verifies_what_we_sign() -> None:
    secret, body = generate_secret(), json.dumps({"type": "job.succeeded", "é": "\u2028"}).encode()
    now = datetime.now(UTC)
    headers = build_signature_headers([secret], "01a2", int(now.timestamp()), body)

    assert Webhook(secret).verify(body, headers) == json.loads(body)
    assert headers["webhook-signature"] == Webhook(secret).sign("01a2", now, body.decode())
    for other in (
        {**headers, "webhook-id": "01a3"},
        {**headers, "webhook-timestamp": str(int(now.timestamp()) - 1)},
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, other)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(generate_secret()).verify(body, headers)


def test_a_secret_has_the_shape_of_the_standard_and_is_long_enough() -> None:
    secret = generate_secret()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert sign(secret, "a", 1, b"").startswith("v1,")


def test_during_a_rotation_both_secrets_verify_and_after_it_only_the_new_one(
    store: Store, clock: HandClock, vault: Vault
) -> None:
    secrets = secrets_of(store)
    _, old = secrets.rotate(vault, TENANT, 3600)
    record, new = secrets.rotate(vault, TENANT, 3600)
    assert secrets.decrypt_signing(vault, TENANT) == [new, old]
    listed = secrets.list_signing(TENANT)
    assert (listed[0].id, listed[0].retires_at) == (record.id, None)
    assert (listed[1].retires_at or clock()) > clock()

    body, at = b"{}", int(datetime.now(UTC).timestamp())
    headers = build_signature_headers(secrets.decrypt_signing(vault, TENANT), "m", at, body)
    assert headers["webhook-signature"].count("v1,") == 2
    for secret in (old, new):
        Webhook(secret).verify(body, headers)

    clock.move(3601)
    headers = build_signature_headers(secrets.decrypt_signing(vault, TENANT), "m", at, body)
    Webhook(new).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(body, headers)


def test_a_secret_that_leaked_can_be_ended_at_once(store: Store, vault: Vault) -> None:
    secrets = secrets_of(store)
    secrets.rotate(vault, TENANT, 3600)
    secrets.rotate(vault, TENANT, 3600)
    _, new = secrets.rotate(vault, TENANT, 0)

    assert secrets.decrypt_signing(vault, TENANT) == [new]


def test_a_header_stays_short_however_often_somebody_rotates(store: Store, vault: Vault) -> None:
    secrets = secrets_of(store)
    made = [secrets.rotate(vault, TENANT, 3600)[1] for _ in range(6)]

    assert secrets.decrypt_signing(vault, TENANT) == made[: -MAX_SIGNING_SECRETS - 1 : -1]


def test_rotations_at_once_leave_exactly_one_newest(store: Store, vault: Vault) -> None:
    secrets = secrets_of(store)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: secrets.rotate(vault, TENANT, 3600), range(8)))

    assert [secret.retires_at for secret in secrets.list_signing(TENANT)].count(None) == 1


def test_tenants_have_secrets_of_their_own(store: Store, vault: Vault) -> None:
    a_tenant(store, "rival")
    secrets = secrets_of(store)
    _, mine = secrets.rotate(vault, TENANT, 3600)
    with pytest.raises(StateConflict) as caught:
        secrets.require_secret("rival")
    assert caught.value.pointer == "/callback"
    _, theirs = secrets.rotate(vault, "rival", 3600)

    assert secrets.decrypt_signing(vault, TENANT) == [mine]
    assert secrets.decrypt_signing(vault, "rival") == [theirs]
    secrets.require_secret(TENANT)


def test_the_database_holds_no_secret_and_a_sealed_one_opens_only_in_its_own_row(
    store: Store, vault: Vault
) -> None:
    a_tenant(store, "rival")
    secrets = secrets_of(store)
    _, mine = secrets.rotate(vault, TENANT, 3600)
    secrets.rotate(vault, "rival", 3600)
    assert mine.removeprefix("whsec_") not in sql_text(store.db)

    with store.db.write() as connection:
        stolen = select(SigningSecret.sealed).where(SigningSecret.tenant_id == TENANT).scalar_subquery()
        connection.execute(
            update(SigningSecret).where(SigningSecret.tenant_id == "rival").values(sealed=stolen)
        )
    with pytest.raises(SettingsInvalid):
        secrets.decrypt_signing(vault, "rival")


def test_secrets_move_under_a_new_key_of_the_vault(store: Store) -> None:
    old, new = generate_key(), generate_key()
    secrets = secrets_of(store)
    _, secret = secrets.rotate(Vault([old]), TENANT, 3600)

    assert rotate_encryption(store.db, Vault([new, old])) == 1
    assert secrets.decrypt_signing(Vault([new]), TENANT) == [secret]


def test_a_secret_that_strays_into_a_log_line_is_blanked() -> None:
    secret = generate_secret()
    event = redact_event(None, "info", {"event": f"made {secret}", "secret": secret})

    assert secret.removeprefix("whsec_") not in str(event)
