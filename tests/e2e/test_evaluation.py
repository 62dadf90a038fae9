"""Evaluations over HTTP, by a real API and a real worker on the bundled bases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.torch import load_file, save_file

from examples.text.queries import read_task
from rebase.hub.local import LocalHub
from rebase.schemas.repos import RepoRef
from support.harness_tasks import CHOICE, write_tasks
from support.whole_service import Service, bundled_service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

EXAMPLES = Path(__file__).parents[2] / "examples"
ITEMS = read_task(EXAMPLES / "tasks" / "harbor-sql.jsonl")
ASKED = [{"prompt": item.prompt, "answer": item.answer} for item in ITEMS[:12]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    tasks = str(write_tasks(home / "tasks", ITEMS[:10]))
    with bundled_service(home, REBASE_TASKS_DIR=tasks, HF_HUB_OFFLINE="1") as service:
        _add_harmful(service.hub)
        yield service


def _add_harmful(hub: Path) -> None:
    """The adapter with its sign turned."""
    local = LocalHub(hub)
    pinned = local.resolve(RepoRef(repo_id="tiny/harbor-sql-lora"))
    shutil.copytree(local.fetch(pinned, "adapter_config.json").parent, hub / "tiny" / "harmful")
    path = hub / "tiny" / "harmful" / "adapter_model.safetensors"
    tensors = {name: -one if "lora_B" in name else one for name, one in load_file(path).items()}
    save_file(tensors, path)


def test_a_job_ends_with_what_its_adapter_is_worth(service: Service) -> None:
    job = service.ended(
        evaluate={"examples": ASKED, "score": "likelihood", "tasks": [CHOICE], "limit": 8},
        output={"repo_id": "tiny/worth"},
    )
    assert job["status"] == "succeeded", job["error"]
    told = job["result"]["evaluation"]
    worth = {(one["subject"], one["metric"]): one for one in told["figures"]}
    assert told["score"] == "likelihood"
    assert worth["moved", "difference"]["low"] > 0
    assert worth["moved", "score"]["n"] == len(ASKED)
    assert not any("No task was evaluated" in line for line in job["result"]["caveats"])

    found = service.get(f"/jobs/{job['id']}/diagnostics")["evaluation"]
    figures = {(one["subject"], one["metric"]): one for one in found["figures"]}
    assert {key: figures[key] for key in worth} == worth
    assert figures["moved", f"{CHOICE}/acc"]["value"] == 1.0
    assert found["tasks"] == [{"name": CHOICE, "version": "1.0", "documents": 8, "num_fewshot": 0}]
    assert found["examples"] == {"generation": len(ASKED)}
    report = json.loads((Path(job["result"]["output"]["url"]) / "rebase_report.json").read_text())
    assert report["evaluation"]["figures"] == found["figures"]
    events = httpx2.get(f"{service.url}/jobs/{job['id']}/events", timeout=30).text
    assert '"evaluating"' in events


def test_a_job_whose_adapter_harms_is_rejected_and_nothing_is_published(service: Service) -> None:
    job = service.ended(
        adapter={"repo_id": "tiny/harmful"},
        evaluate={"examples": ASKED, "score": "likelihood"},
        output={"repo_id": "tiny/harm"},
    )
    assert (job["status"], job["error"]["code"]) == ("rejected", "worse_than_target"), job["error"]
    assert job["error"]["pointer"] == "/evaluate"
    assert not (service.hub / "tiny" / "harm").exists()
    found = service.get(f"/jobs/{job['id']}/diagnostics")["evaluation"]
    difference = next(
        one for one in found["figures"] if (one["subject"], one["metric"]) == ("moved", "difference")
    )
    assert difference["high"] < 0


def test_an_oracle_that_is_not_there_ends_the_job_at_its_field(service: Service) -> None:
    job = service.ended(evaluate={"examples": ASKED[:1], "oracle": {"repo_id": "tiny/nobody"}})
    error = job["error"]
    assert (job["status"], error["code"], error["pointer"]) == (
        "failed",
        "repo_not_found",
        "/evaluate/oracle",
    )


@pytest.mark.parametrize(
    ("kind", "evaluate", "pointer"),
    [
        ("precheck", {"examples": ASKED[:1]}, "/evaluate"),
        ("convert", {"examples": []}, "/evaluate"),
        (
            "convert",
            {"examples": [{"prompt": "a", "choices": ["b", "c"], "label": 2}]},
            "/evaluate/examples/0/label",
        ),
        ("convert", {"examples": [{"text": "ab", "answer": "c"}]}, "/evaluate/examples/0/answer"),
        ("convert", {"tasks": ["../task.yaml"]}, "/evaluate/tasks/0"),
        ("convert", {"refusals": {"prompts": []}}, "/evaluate/refusals"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_its_field(
    service: Service, kind: str, evaluate: dict[str, Any], pointer: str
) -> None:
    answer = service.ask(kind, evaluate=evaluate)
    assert answer.status_code == 422
    assert answer.json()["pointers"] == [pointer]
