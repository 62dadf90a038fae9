"""The audit log only grows, and shows networks where it could show addresses."""

from __future__ import annotations

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError

from rebase.errors import RequestInvalid
from rebase.store.audit import AuditContext, anonymize_address, list_audit_events, write_audit_event
from rebase.store.store import Store
from rebase.store.tables.tenants import AuditEvent


def _write(store: Store, tenant: str, *about: str) -> None:
    with store.db.write() as connection:
        for one in about:
            write_audit_event(connection, store.clock(), AuditContext(tenant), "noun.verb", one)


def test_a_tenants_lines_come_newest_first_page_by_page(store: Store) -> None:
    _write(store, "acme", "1", "2", "3")
    _write(store, "rival", "other")
    first = list_audit_events(store.db, "acme", limit=2)
    second = list_audit_events(store.db, "acme", before=first[-1].id, limit=2)

    assert [[line.object for line in page] for page in (first, second)] == [["3", "2"], ["1"]]
    with pytest.raises(RequestInvalid):
        list_audit_events(store.db, "acme", limit=0)


def test_a_line_that_was_written_cannot_be_changed(store: Store) -> None:
    _write(store, "acme", "1")
    with pytest.raises(DBAPIError, match="never changed"), store.db.write() as connection:
        connection.execute(update(AuditEvent).values(object="another"))

    assert [line.object for line in list_audit_events(store.db, "acme")] == ["1"]


def test_what_is_rolled_back_leaves_no_line(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.db.write() as connection:
        write_audit_event(connection, store.clock(), AuditContext("acme"), "noun.verb", "1")
        raise ZeroDivisionError
    assert list_audit_events(store.db, "acme") == []


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2::7", "2001:db8:1::/48"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("testclient", None),
        (None, None),
    ],
)
def test_an_address_is_kept_as_its_network(address: str | None, network: str | None) -> None:
    assert anonymize_address(address) == network


def test_an_error_of_the_database_does_not_quote_what_was_to_be_stored(store: Store) -> None:
    with pytest.raises(DBAPIError) as refused, store.db.write() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:secret)"), {"secret": "hunter2"})

    assert "hunter2" not in str(refused.value)
