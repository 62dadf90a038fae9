"""Health, figures, the catalogue, the schema; and what the API process must not load."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import migrations
from rebase.methods.params import PARAMS_BY_NAME
from support.api import BODY, Api
from support.databases import a_request

ROOT = Path(__file__).resolve().parents[2]


def test_a_service_on_a_migrated_database_is_ready(client: TestClient) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["migration"]) == (
        200,
        "ready",
        migrations.head(),
    )


def test_a_service_on_a_database_of_another_version_is_not_ready(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    with Api.start(url, tmp_path) as api:
        before = api.client.get("/readyz")
        migrations.upgrade(url)
        after = api.client.get("/readyz")

    assert (before.status_code, before.json()["code"]) == (503, "not_migrated")
    assert after.status_code == 200


def test_the_catalogue_lists_every_method_with_its_schema(client: TestClient) -> None:
    methods = client.get("/methods").json()["methods"]

    assert [method["name"] for method in methods] == list(PARAMS_BY_NAME)
    assert all(method["parameters"]["type"] == "object" and method["summary"] for method in methods)


def test_figures_count_requests_by_route_and_jobs_by_state(api: Api) -> None:
    job_id = api.submit()
    api.claim(api.submit())
    api.client.get(f"/jobs/{job_id}")

    text = api.client.get("/metrics").text

    assert 'rebase_http_requests_total{method="POST",route="/convert",status="202"} 2.0' in text
    assert 'rebase_http_requests_total{method="GET",route="/jobs/{job_id}",status="200"} 1.0' in text
    assert 'rebase_jobs_active{state="queued"} 1.0' in text
    assert 'rebase_jobs_active{state="running"} 1.0' in text
    assert job_id not in text


def test_the_schema_describes_every_call_its_errors_and_its_keys(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()

    paths = set(schema["paths"])
    assert paths >= {"/convert", "/precheck", "/jobs", "/methods", "/livez", "/readyz", "/metrics"}
    assert paths >= {
        f"/jobs/{{job_id}}{rest}" for rest in ("", "/diagnostics", "/events", "/cancel", "/retry")
    }
    names = set(schema["components"]["schemas"])
    assert set(re.findall(r"#/components/schemas/(\w+)", str(schema))) <= names
    assert "HTTPValidationError" not in names
    assert schema["components"]["securitySchemes"]


def test_the_address_alone_leads_to_the_documentation(client: TestClient) -> None:
    assert client.get("/", follow_redirects=False).headers["location"] == "/docs"


@pytest.mark.parametrize(
    "modules", ["service.app, service.main, service.__main__", "service.callbacks.__main__"]
)
def test_neither_api_nor_courier_loads_anything_that_touches_tensors_or_the_hub(modules: str) -> None:
    script = (
        f"import sys, {modules}\n"
        "heavy = {'torch', 'transformers', 'peft', 'safetensors', 'huggingface_hub', 'numpy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (found.returncode, found.stderr) == (0, "")


def test_a_real_server_serves_and_stops_cleanly_with_a_stream_open(sqlite_url: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("REBASE_")},
        "REBASE_DATABASE_URL": sqlite_url,
        "REBASE_HOME": str(tmp_path),
        "REBASE_PORT": str(port),
        "REBASE_LOG_FORMAT": "json",
        "PYTHONPATH": str(ROOT),
    }
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "service"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{base}/readyz", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        body = json.dumps(BODY).encode()
        request = urllib.request.Request(f"{base}/convert", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            job = json.load(answer)
        with urllib.request.urlopen(f"{base}/jobs/{job['id']}/events", timeout=5) as stream:
            assert stream.readline() == b"event: state\n"
            process.terminate()
            # The server ends by the signal that it was sent, after its own orderly end.
            assert process.wait(15) in {0, -signal.SIGTERM}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    (submitted,) = [line for line in lines if line.get("path") == "/convert"]
    assert (submitted["status"], submitted["method"]) == (202, "POST")
    assert submitted["request_id"]


def test_made_up_http_methods_make_no_new_figures(client: TestClient) -> None:
    for name in ("FIRST", "SECOND"):
        assert client.request(name, "/livez").status_code == 405

    figures = client.get("/metrics").text
    assert "FIRST" not in figures
    assert 'rebase_http_requests_total{method="other",route="/livez",status="405"} 2.0' in figures


def test_a_service_that_may_not_be_served_says_why_and_exits(tmp_path: Path) -> None:
    env = {**os.environ, "REBASE_HOST": "0.0.0.0", "REBASE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "service"]
    found = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert found.returncode == 2
    assert "REBASE_AUTH=keys" in found.stderr
    assert "Traceback" not in found.stderr


def test_postgresql_serves_the_same(empty_postgres_url: str, tmp_path: Path) -> None:
    with Api.start(empty_postgres_url, tmp_path) as api:
        first = api.client.post("/convert", json=BODY, headers={"Idempotency-Key": "k"}).json()
        assert api.client.post("/convert", json=BODY, headers={"Idempotency-Key": "k"}).json() == first
        assert api.client.get("/readyz").status_code == 200
        claim = api.claim(first["id"])
        assert claim.request == a_request()
        api.store.queue.succeed(claim, {"done": True})
        assert api.client.get(f"/jobs/{first['id']}").json()["result"] == {"done": True}
