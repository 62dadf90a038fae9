"""`auto` by measurement in the terminal: the table of a choice and of a refusal."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rebase.client.http import RebaseClient
from rebase.errors import PublicError
from rebase.store.records import LayerSimilarityMatrix
from support.command import Command
from support.running_service import RunningService

EXAMPLES = Path(__file__).parents[2] / "examples"
BASES = ("tiny/harbor-sql-lora", "--source", "tiny/harbor-1", "--hub", str(EXAMPLES / "hub"))


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first questions of the bundled task; a home of our own."""
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REBASE_DEVICE", "cpu")
    lines = (EXAMPLES / "tasks" / "harbor-sql.jsonl").read_text().splitlines()[:12]
    file = tmp_path / "task.jsonl"
    file.write_text("\n".join(lines))
    return file


def told(task: Path, target: str, *more: str) -> list[str]:
    settings = (f"evaluate.score={json.dumps('likelihood')}", "evaluate.controls=[]", *more)
    words = [word for setting in settings for word in ("--set", setting)]
    return ["transfer", *BASES, "--target", target, "--evaluate", str(task), *words]


def test_the_candidates_are_shown_and_the_best_is_written(
    task: Path, tmp_path: Path, rebase: Command
) -> None:
    line = told(task, "tiny/harbor-2", 'candidates=["linear", "copy", {"name": "prolora", "energy": 0.9}]')
    done = rebase(*line, "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    table = done.out[done.out.index("compared on 6 examples (likelihood)") :].splitlines()
    assert [row.split()[0] for row in table[2:6]] == ["target", "linear", "copy", "prolora"]
    assert table[4].endswith("best")
    assert table[5].startswith("prolora (energy=0.9)")
    assert "On the other 6: " in done.out
    report = json.loads((tmp_path / "out" / "rebase_report.json").read_text())
    assert report["method_used"]["name"] == "copy"
    assert report["selection"]["best"] == 1


def test_where_nothing_helps_the_table_is_shown_with_exit_3_and_nothing_written(
    task: Path, tmp_path: Path, rebase: Command
) -> None:
    line = told(task, "tiny/lantern-1", 'candidates=["copy", "cross_lora"]')
    file = tmp_path / "report.json"
    done = rebase(*line, "--out", str(tmp_path / "out"), "--report", str(file))
    assert done.code == 3
    assert not (tmp_path / "out").exists()
    assert "Tried: copy was not measured (copy needs equal shapes" in " ".join(done.err.split())
    assert "copy needs equal shapes at every site" in " ".join(done.out.split())
    assert json.loads(file.read_text())["selection"]["ending"] == "none_fit"


def test_a_job_that_found_nothing_better_shows_its_table(at_service: RunningService, rebase: Command) -> None:
    line = ("convert", "acme/sql-lora", "--target", "acme/new", "--json")
    job_id = str(json.loads(rebase(*line).out)["id"])
    claim = at_service.store.queue.claim(job_id, "tester:1", 60.0)
    assert claim is not None
    scored = {"value": 0.25, "low": 0.125, "high": 0.375}
    rows: list[dict[str, Any]] = [
        {"method": {"name": "copy"}, "verdict": "uncertain", "score": scored, "gain": scored, "reason": None},
        {"method": {"name": "linear"}, "verdict": None, "score": None, "gain": None, "reason": "No. Never."},
    ]
    selection = {"choosing": 8, "confirming": 8, "shared": False, "score": "accuracy", "target": scored}
    summary = {"selection": {**selection, "candidates": rows, "best": 0, "confirmed": None}}
    at_service.store.queue.save_diagnostics(claim, summary, [], "uncertain")
    at_service.store.queue.reject(claim, PublicError(code="nothing_better", message="No candidate."))
    done = rebase("status", job_id)
    assert done.code == 3
    shown = [line.split() for line in done.out.splitlines()]
    assert ["copy", "0.250", "0.125", "to", "0.375", "uncertain", "best"] in shown
    assert ["linear", "No"] in shown


def test_a_pre_check_at_a_service_shows_how_many_layers_are_alike(
    at_service: RunningService, rebase: Command
) -> None:
    def work() -> None:
        with RebaseClient(at_service.url) as client:
            while not (found := list(client.list_jobs(adapter="acme/read"))):
                time.sleep(0.05)
        claim = at_service.store.queue.claim(found[0].id, "tester:1", 60.0)
        assert claim is not None
        layer_map = {"layer_map": {"coverage": 0.5, "threshold": 0.7}}
        layers = LayerSimilarityMatrix([[0.9, 0.25]], [0, 0])
        at_service.store.queue.save_diagnostics(claim, layer_map, [], "uncertain", layers)
        at_service.store.queue.succeed(claim, {"verdict": "uncertain", "reasons": []})

    worker = threading.Thread(target=work)
    worker.start()
    done = rebase("precheck", "acme/read", "--target", "acme/new", "--set", "precheck.activations=true")
    worker.join()
    assert done.code == 0
    assert "50% of the target's have a source layer above CKA 0.7" in done.out
