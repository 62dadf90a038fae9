"""Migrations go up and down, twice and at once, and make what the models say."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

import migrations
from rebase.store.audit import AuditContext, write_audit_event
from rebase.store.database import Database
from rebase.store.tables.base import Base
from rebase.store.tables.tenants import ApiKey, Tenant


def _tables(url: str) -> set[str]:
    db = Database.open(url)
    names = set(inspect(db.engine).get_table_names())
    db.close()
    return names


def test_a_migrated_database_is_what_the_models_say(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    db = Database.open(bare_url)
    with db.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        differences = compare_metadata(context, Base.metadata)
    db.close()

    assert differences == []


def test_the_way_down_leaves_nothing_and_the_way_up_works_again(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    migrations.downgrade(bare_url, "base")
    assert _tables(bare_url) == {"alembic_version"}

    migrations.upgrade(bare_url)
    assert _tables(bare_url) >= set(Base.metadata.tables)


def test_upgrading_twice_changes_nothing(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    migrations.upgrade(bare_url)
    db = Database.open(bare_url)
    with db.read() as connection:
        assert migrations.current(connection) == migrations.head()
        assert connection.scalars(select(Tenant.id)).all() == ["default"]
    db.close()


def test_a_database_that_was_never_migrated_has_no_revision(bare_url: str) -> None:
    db = Database.open(bare_url)
    with db.read() as connection:
        assert migrations.current(connection) is None
    db.close()


def test_keys_that_were_rotated_before_are_known_as_such_and_all_survive_the_way_down(bare_url: str) -> None:
    migrations.upgrade(bare_url, "0007")
    db = Database.open(bare_url)
    old, other, at = "0" * 32, "1" * 32, datetime(2026, 1, 1, tzinfo=UTC)
    with db.write() as connection:
        key = text(
            "INSERT INTO api_keys (id, tenant_id, name, prefix, sha256, created_at, scope) "
            "VALUES (:id, 'default', 'key', 'rb_', :id, '2026-01-01', 'admin')"
        )
        connection.execute(key, [{"id": old}, {"id": other}])
        write_audit_event(connection, at, AuditContext("default"), "key.rotated", old)
        write_audit_event(connection, at, AuditContext("default"), "key.revoked", other)
    migrations.upgrade(bare_url)
    with db.read() as connection:
        rotated = select(ApiKey.id, ApiKey.rotated_at).order_by(ApiKey.id)
        assert connection.execute(rotated).all() == [(old, at), (other, None)]

    migrations.downgrade(bare_url, "0007")

    with db.read() as connection:
        assert connection.scalars(select(ApiKey.id).order_by(ApiKey.id)).all() == [old, other]
    assert "spent_jobs" not in _tables(bare_url)
    db.close()


def test_processes_that_start_together_migrate_once(bare_url: str) -> None:
    command = [sys.executable, "-c", "import sys, migrations; migrations.upgrade(sys.argv[1])", bare_url]
    processes = [subprocess.Popen(command) for _ in range(3)]

    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert _tables(bare_url) >= set(Base.metadata.tables)
