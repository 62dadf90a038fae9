"""The figures of an evaluation as rows: what is saved comes back, is replaced, and goes with its job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, inspect, select, text

import migrations
from rebase.errors import PublicError
from rebase.store.database import Database
from rebase.store.job_store import JobStore
from rebase.store.records import Claim, MetricRow
from rebase.store.tables.jobs import EvaluationMetric
from support.databases import a_request
from support.postgres import a_database, a_postgres

TENANT = "default"
FIGURES = (
    MetricRow("moved", "score", 0.1 + 0.2, 0.25, 1 / 3, 48, None),
    MetricRow("target", "score", -1e-300, -5.5, 0.0, 48, None),
    MetricRow("moved", "retention", None, None, None, 48, "the gain to be kept is +0.010, below 0.05"),
    MetricRow("moved", "arc_easy/acc_norm", 0.5, None, None, 100, None),
)


def _running(store: JobStore) -> Claim:
    claim = store.claim(store.submit(TENANT, "convert", a_request())[0].id, "worker", 60)
    assert claim is not None
    return claim


def _rows(store: JobStore) -> int:
    with store.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(EvaluationMetric)) or 0


def test_figures_come_back_as_they_were_saved(store: JobStore) -> None:
    claim, other = _running(store), _running(store)
    store.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)

    assert store.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES
    assert store.get_diagnostics(TENANT, other.job_id).metrics == ()


def test_a_later_attempt_replaces_them_and_one_without_clears_them(store: JobStore) -> None:
    claim = _running(store)
    store.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)
    store.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES[1:2])
    assert store.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES[1:2]

    store.save_diagnostics(claim, {}, [], "compatible")
    assert _rows(store) == 0


def test_a_persons_retry_clears_them(store: JobStore) -> None:
    claim = _running(store)
    store.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)
    store.reject(claim, PublicError(code="worse_than_target", message="No."))
    assert store.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES
    store.retry(TENANT, claim.job_id)

    assert _rows(store) == 0


def test_they_go_with_their_job(store: JobStore) -> None:
    claim, kept = _running(store), _running(store)
    for each in (claim, kept):
        store.save_diagnostics(each, {}, [], "compatible", metrics=FIGURES)
    with store.db.write() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": claim.job_id})

    assert _rows(store) == len(FIGURES)
    assert store.get_diagnostics(TENANT, kept.job_id).metrics == FIGURES


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database in which nothing was ever migrated."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bare.db'}"
        return
    with a_postgres() as server, a_database(server) as url:
        yield url


def test_the_way_down_and_up_loses_the_figures_and_nothing_else(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    store = JobStore(Database.open(bare_url))
    claim = _running(store)
    store.save_diagnostics(claim, {"a": 1}, [{"site": 0}], "compatible", metrics=FIGURES)
    job = store.get(TENANT, claim.job_id)
    store.db.close()

    migrations.downgrade(bare_url, "0003")
    db = Database.open(bare_url)
    assert "evaluations" not in inspect(db.engine).get_table_names()
    db.close()
    migrations.upgrade(bare_url)

    store = JobStore(Database.open(bare_url))
    assert store.get(TENANT, claim.job_id) == job
    found = store.get_diagnostics(TENANT, claim.job_id)
    assert (found.sites, found.metrics) == (({"site": 0},), ())
    store.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)
    assert store.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES
    store.db.close()
