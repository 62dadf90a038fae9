"""The layer map of a job as rows: what is saved comes back, is replaced, and goes with its job."""

from __future__ import annotations

from sqlalchemy import func, inspect, select, text

import migrations
from rebase.errors import PublicError
from rebase.store.database import Database
from rebase.store.records import Claim, LayerSimilarityMatrix
from rebase.store.store import Store
from rebase.store.tables.jobs import LayerSimilarity
from support.databases import a_request

TENANT = "default"
ALIKE = LayerSimilarityMatrix([[0.9, 0.25, -0.01], [0.1, 0.5, 1.0]], [0, 1, 1])
ERROR = PublicError(code="incompatible", message="No.")


def _running(store: Store) -> Claim:
    claim = store.queue.claim(store.submissions.submit(TENANT, "convert", a_request())[0].id, "worker", 60)
    assert claim is not None
    return claim


def _rows(store: Store) -> int:
    with store.db.read() as connection:
        return connection.scalar(select(func.count()).select_from(LayerSimilarity)) or 0


def test_the_map_comes_back_as_it_was_saved(store: Store) -> None:
    claim, other = _running(store), _running(store)
    store.queue.save_diagnostics(claim, {}, [], "compatible", ALIKE)

    assert store.jobs.get_diagnostics(TENANT, claim.job_id).layer_similarity == ALIKE
    assert _rows(store) == 6
    assert store.jobs.get_diagnostics(TENANT, other.job_id).layer_similarity == LayerSimilarityMatrix([], [])


def test_a_map_of_many_layers_keeps_its_order(store: Store) -> None:
    deep = LayerSimilarityMatrix([[s / 80 - t / 160 for t in range(80)] for s in range(80)], list(range(80)))
    claim = _running(store)
    store.queue.save_diagnostics(claim, {}, [], "compatible", deep)

    assert store.jobs.get_diagnostics(TENANT, claim.job_id).layer_similarity == deep


def test_a_later_attempt_replaces_the_map_and_one_without_a_map_clears_it(store: Store) -> None:
    claim = _running(store)
    store.queue.save_diagnostics(claim, {}, [], "uncertain", ALIKE)
    smaller = LayerSimilarityMatrix([[0.75]], [0])
    store.queue.save_diagnostics(claim, {}, [], "compatible", smaller)
    assert store.jobs.get_diagnostics(TENANT, claim.job_id).layer_similarity == smaller

    store.queue.save_diagnostics(claim, {}, [], "compatible")
    assert _rows(store) == 0


def test_a_persons_retry_clears_the_map(store: Store) -> None:
    claim = _running(store)
    store.queue.save_diagnostics(claim, {}, [], "incompatible", ALIKE)
    store.queue.reject(claim, ERROR)
    store.jobs.retry(TENANT, claim.job_id)

    assert _rows(store) == 0


def test_the_map_goes_with_its_job(store: Store) -> None:
    claim, kept = _running(store), _running(store)
    for each in (claim, kept):
        store.queue.save_diagnostics(each, {}, [], "compatible", ALIKE)
    with store.db.write() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": claim.job_id})

    assert _rows(store) == 6
    assert store.jobs.get_diagnostics(TENANT, kept.job_id).layer_similarity == ALIKE


def test_the_way_down_and_up_loses_the_map_and_nothing_else(bare_url: str) -> None:
    migrations.upgrade(bare_url)
    store = Store(Database.open(bare_url))
    claim = _running(store)
    store.queue.save_diagnostics(claim, {"a": 1}, [{"site": 0}], "compatible", ALIKE)
    job = store.jobs.get(TENANT, claim.job_id)
    store.db.close()

    migrations.downgrade(bare_url, "0002")
    db = Database.open(bare_url)
    assert "layer_similarities" not in inspect(db.engine).get_table_names()
    db.close()
    migrations.upgrade(bare_url)

    store = Store(Database.open(bare_url))
    assert store.jobs.get(TENANT, claim.job_id) == job
    found = store.jobs.get_diagnostics(TENANT, claim.job_id)
    assert (found.sites, found.layer_similarity) == (({"site": 0},), LayerSimilarityMatrix([], []))
    store.queue.save_diagnostics(claim, {}, [], "compatible", ALIKE)
    assert store.jobs.get_diagnostics(TENANT, claim.job_id).layer_similarity == ALIKE
    store.db.close()
