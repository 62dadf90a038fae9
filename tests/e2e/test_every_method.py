"""Every method that the catalogue names, over HTTP: from a request to a published adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.whole_service import Service, bundled_service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# What trains or reads a text is given little to do: that it works is shown elsewhere.
LITTLE: dict[str, dict[str, Any]] = {
    "activation": {"positions": 1000},
    "geometric": {"positions": 1000},
    "cast": {"steps": 8, "evaluate_every": 4, "tokens": 64, "positions": 1000},
    "distill": {"steps": 8, "evaluate_every": 4, "tokens": 800},
}
POOLED = ("json", "lisp", "python")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with bundled_service(tmp_path_factory.mktemp("home")) as service:
        yield service


@pytest.fixture(scope="module")
def pool(service: Service) -> str:
    """Three other tasks that have an adapter on both bases."""
    anchors = [
        {
            side: {"repo_id": f"tiny/harbor-{task}-lora-{number}"}
            for side, number in (("source", 1), ("target", 2))
        }
        for task in POOLED
    ]
    bases = {"source": {"repo_id": "tiny/harbor-1"}, "target": {"repo_id": "tiny/harbor-2"}}
    answer = service.post("/anchor-pools", {**bases, "anchors": anchors})
    assert answer.status_code == 202, answer.text
    job = service.end_of(f"/jobs/{answer.json()['id']}")
    assert job["status"] == "succeeded", job["error"]
    return str(job["id"])


def test_every_method_of_the_catalogue_publishes_a_plain_adapter(service: Service, pool: str) -> None:
    names = [method["name"] for method in service.get("/methods")["methods"]]
    assert len(names) == 13
    paths = {}
    for name in names:
        method = {"name": name, **LITTLE.get(name, {}), **({"pool": pool} if name == "anchor_ridge" else {})}
        wanted = {"method": method, "precheck": {"on_incompatible": "warn"}}
        answer = service.ask(**wanted, output={"repo_id": f"tiny/by-{name}"})
        assert answer.status_code == 202, (name, answer.text)
        paths[name] = answer.headers["location"]
    for name, path in paths.items():
        job = service.end_of(path)
        assert job["status"] == "succeeded", (name, job["error"])
        folder = Path(job["result"]["output"]["url"])
        published = {path.name for path in folder.iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= published
        report = json.loads((folder / "rebase_report.json").read_text())
        assert report["method_requested"]["name"] == name
        assert report["method_used"]["name"] == ("copy" if name == "auto" else name)
        assert report["verification"]["logit_change"] > 0.0
