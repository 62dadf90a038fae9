"""The figures of an evaluation as rows: what is saved comes back, is replaced, and goes with its job."""

from __future__ import annotations

from sqlalchemy import func, inspect, select, text

import migrations
from rebase.errors import PublicError
from rebase.store.database import Database
from rebase.store.records import Claim, MetricRow
from rebase.store.store import Store
from rebase.store.tables.jobs import EvaluationMetric
from support.databases import a_request

TENANT = "default"
FIGURES = (
    MetricRow("moved", "score", 0.1 + 0.2, 0.25, 1 / 3, 48, None),
    MetricRow("target", "score", -1e-300, -5.5, 0.0, 48, None),
    MetricRow("moved", "retention", None, None, None, 48, "the reference gain is +0.010, below 0.05"),
    MetricRow("moved", "arc_easy/acc_norm", 0.5, None, None, 100, None),
)


def _running(store: Store) -> Claim:
    claim = store.queue.claim(store.submissions.submit(TENANT, "convert", a_request())[0].id, "worker", 60)
    assert claim is not None
    return claim


def _rows(store: Store) -> int:
    with store.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(EvaluationMetric)) or 0


def test_figures_come_back_as_they_were_saved(store: Store) -> None:
    claim, other = _running(store), _running(store)
    store.queue.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)

    assert store.jobs.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES
    assert store.jobs.get_diagnostics(TENANT, other.job_id).metrics == ()


def test_a_later_attempt_replaces_them_and_one_without_clears_them(store: Store) -> None:
    claim = _running(store)
    store.queue.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)
    store.queue.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES[1:2])
    assert store.jobs.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES[1:2]

    store.queue.save_diagnostics(claim, {}, [], "compatible")
    assert _rows(store) == 0


def test_a_persons_retry_clears_them(store: Store) -> None:
    claim = _running(store)
    store.queue.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)
    store.queue.reject(claim, PublicError(code="worse_than_target", message="No."))
    assert store.jobs.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES
    store.jobs.retry(TENANT, claim.job_id)

    assert _rows(store) == 0


def test_they_go_with_their_job(store: Store) -> None:
    claim, kept = _running(store), _running(store)
    for each in (claim, kept):
        store.queue.save_diagnostics(each, {}, [], "compatible", metrics=FIGURES)
    with store.db.write() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": claim.job_id})

    assert _rows(store) == len(FIGURES)
    assert store.jobs.get_diagnostics(TENANT, kept.job_id).metrics == FIGURES


def test_the_way_down_and_up_loses_the_figures_and_nothing_else(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    store = Store(Database.open(bare_url))
    claim = _running(store)
    store.queue.save_diagnostics(claim, {"a": 1}, [{"site": 0}], "compatible", metrics=FIGURES)
    job = store.jobs.get(TENANT, claim.job_id)
    store.db.close()

    migrations.downgrade(bare_url, "0003")
    db = Database.open(bare_url)
    assert "evaluations" not in inspect(db.engine).get_table_names()
    db.close()
    migrations.upgrade(bare_url)

    store = Store(Database.open(bare_url))
    assert store.jobs.get(TENANT, claim.job_id) == job
    found = store.jobs.get_diagnostics(TENANT, claim.job_id)
    assert (found.sites, found.metrics) == (({"site": 0},), ())
    store.queue.save_diagnostics(claim, {}, [], "compatible", metrics=FIGURES)
    assert store.jobs.get_diagnostics(TENANT, claim.job_id).metrics == FIGURES
    store.db.close()
