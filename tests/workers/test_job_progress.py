"""What a job's evidence becomes in SQL: a summary, rows of sites, and rows of the layer map."""

from __future__ import annotations

from pathlib import Path

import migrations
from rebase.report.model_card import render_model_card
from rebase.report.schema import CorpusInfo, LayerMap, Precheck, RepoRevision, Report
from rebase.store.database import Database
from rebase.store.store import Store
from support.databases import a_request
from workers.job_progress import JobProgress
from workers.lease import LeaseHeartbeat

ALIKE = LayerMap(
    similarity=[[0.9, 0.25, 0.0], [0.1, 0.5, 1.0]],
    layers=[0, 1, 1],
    coverage=2 / 3,
    threshold=0.7,
    positions=900,
    coverage_source=0.9,
    coverage_target=0.8,
    biased=[0.95, 0.625, 1.0],
    corpus=CorpusInfo(name="a|b", digest="0" * 64, documents=3),
)


def _report(layer_map: LayerMap | None) -> Report:
    return Report(
        rebase_version="0",
        libraries={},
        adapter=RepoRevision(repo_id="acme/sql-lora", sha="a" * 40),
        source=RepoRevision(repo_id="acme/old", sha="b" * 40),
        target=RepoRevision(repo_id="acme/new", sha="c" * 40),
        method_requested={"name": "copy"},
        method_used={"name": "copy"},
        precheck=Precheck(verdict="uncertain", reasons=[], measurements={}),
        layer_map=layer_map,
    )


def test_the_layer_map_of_a_report_is_stored_once_as_rows_and_its_figures_in_the_summary(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    migrations.upgrade(url)
    store = Store(Database.open(url))
    claim = store.queue.claim(store.submissions.submit("default", "convert", a_request())[0].id, "worker", 60)
    assert claim is not None
    watch = JobProgress(store, claim, LeaseHeartbeat(store, claim, interval_s=10, lease_s=60))

    watch.report_evidence(_report(ALIKE))
    found = store.jobs.get_diagnostics("default", claim.job_id)
    assert found.summary is not None
    assert (
        LayerMap.model_validate(
            {
                **found.summary["layer_map"],
                "similarity": found.layer_similarity.similarity,
                "layers": found.layer_similarity.layer_map,
            }
        )
        == ALIKE
    )
    assert "similarity" not in found.summary["layer_map"]

    watch.report_evidence(_report(None))
    found = store.jobs.get_diagnostics("default", claim.job_id)
    assert found.summary is not None
    assert (found.summary["layer_map"], found.layer_similarity.similarity) == (None, [])
    store.db.close()


def test_the_card_says_the_map_in_numbers_and_quotes_names_without_markup() -> None:
    card = render_model_card(_report(ALIKE), {})
    for line in (
        "| target layers with a similar source layer | 67% (above 0.7) |",
        "| similarity along the map | mean 0.8, lowest 0.5 |",
        "| verdict before the move | uncertain |",
        "| token positions compared | 900 (90% of the source's tokens, 80% of the target's) |",
        r"| text | a\|b, 3 documents |",
    ):
        assert line in card
    assert "(layer_similarity.png)" in card
    assert "layer_similarity" not in render_model_card(_report(None), {})
