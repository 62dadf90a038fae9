"""Every error is one shape, whatever made it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

import rebase.errors
import service
from rebase.store.jobs import JobRepository
from service.problem_details import STATUS_BY_CODE
from support.api import BODY, Api

JSON = {"Content-Type": "application/json"}


def _chunks(size: int) -> Iterator[bytes]:
    yield b'{"adapter": "'
    for _ in range(size // 1024):
        yield b"x" * 1024
    yield b'"}'


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "not_found"),
        ("DELETE", "/convert", {}, 405, "method_not_allowed"),
        ("POST", "/convert", {"content": b'{"adapter":', "headers": JSON}, 400, "malformed_body"),
        ("POST", "/convert", {"content": b"\xff\xfe", "headers": JSON}, 400, "malformed_body"),
        ("POST", "/convert", {"content": b"[" * 60_000, "headers": JSON}, 400, "malformed_body"),
        ("POST", "/convert", {"content": b"1" * 60_000, "headers": JSON}, 400, "malformed_body"),
        ("POST", "/convert", {"content": b"", "headers": JSON}, 422, "request_invalid"),
        ("POST", "/convert", {"content": b"null", "headers": JSON}, 422, "request_invalid"),
        ("POST", "/convert", {"content": b"[]", "headers": JSON}, 422, "request_invalid"),
        ("POST", "/convert", {"content": b"{}"}, 415, "unsupported_media_type"),
        ("POST", "/convert", {"data": {"adapter": "a/b"}}, 415, "unsupported_media_type"),
        ("POST", "/convert", {"content": b"x" * 300_000, "headers": JSON}, 413, "body_too_large"),
        ("POST", "/convert", {"content": _chunks(300_000), "headers": JSON}, 413, "body_too_large"),
        ("POST", "/nowhere", {"content": b"x" * 300_000, "headers": JSON}, 413, "body_too_large"),
    ],
)
def test_an_error_is_a_problem_record(
    client: TestClient, method: str, path: str, options: dict[str, object], status: int, code: str
) -> None:
    answer = client.request(method, path, **options)  # type: ignore[arg-type]

    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["code"] == code
    assert problem["type"].endswith(code)
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert client.post("/convert", json=BODY).status_code == 202


def test_a_wrong_method_names_the_right_ones(client: TestClient) -> None:
    assert client.delete("/convert").headers["allow"] == "POST"


def test_a_body_just_inside_the_limit_is_read(client: TestClient) -> None:
    padding = " " * (256 * 1024 - 100)
    body = b'{"adapter": {"repo_id": "a/b"}, "target": {"repo_id": "c/d"}' + padding.encode() + b"}"

    assert client.post("/convert", content=body, headers=JSON).status_code == 202


def test_a_bug_is_a_500_that_gives_nothing_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(JobRepository, "get", broken)
    with capture_logs() as lines:
        answer = api.client.get(f"/jobs/{'0' * 32}")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    (line,) = [line for line in lines if line["event"] == "unforeseen"]
    assert line["log_level"] == "error"


def test_a_request_id_is_kept_when_it_is_a_plain_one(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "abc-123"}).headers["x-request-id"] == "abc-123"
    odd = client.get("/livez", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"]
    assert len(odd) == 32


def test_every_code_that_the_service_can_raise_has_a_status() -> None:
    raised = set()
    for path in Path(service.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "build_problem_response" and isinstance(node.args[0], ast.Constant):
                    raised.add(node.args[0].value)
                error = getattr(rebase.errors, node.func.id, None)
                if isinstance(error, type) and issubclass(error, rebase.errors.RebaseError):
                    raised.add(error.code)

    assert raised - {"settings_invalid"} <= set(STATUS_BY_CODE)
    assert {"busy", "not_found", "state_conflict", "idempotency_mismatch", "not_available"} <= set(
        STATUS_BY_CODE
    )
