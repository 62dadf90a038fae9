"""`rebase pools` and the client's calls, against a real service. The test plays the worker."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rebase.client.errors import ServiceError
from rebase.client.http import RebaseClient
from rebase.errors import PublicError, RequestInvalid
from rebase.schemas.states import JobState, Phase
from rebase.store.tables.base import DEFAULT_TENANT
from support.command import Command
from support.pools import COMMIT, NEW, OLD, a_pool, finish_pool, pool_body
from support.running_service import RunningService

UNREACHABLE = ("--url", "http://127.0.0.1:1")


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file with a pool in it."""
    return write(tmp_path, pool_body(name="tiny tasks"))


def write(folder: Path, body: Any) -> str:
    path = folder / "pool.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return str(path)


def added(rebase: Command, file: str) -> str:
    done = rebase("pools", "add", file, "--json")
    assert done.code == 0, done.err
    return str(json.loads(done.out)["id"])


def test_a_pool_is_added_and_its_document_is_that_of_the_service(
    at_service: RunningService, rebase: Command, file: str
) -> None:
    pool_id = added(rebase, file)
    with RebaseClient(at_service.url) as client:
        pool = client.get_pool(pool_id)
    assert (pool.state, pool.name, pool.anchor_count) == ("validating", "tiny tasks", 3)
    assert json.loads(rebase("pools", "show", pool_id, "--json").out) == pool.model_dump(mode="json")
    assert at_service.store.pools.get(DEFAULT_TENANT, pool_id).job.request == a_pool(
        name="tiny tasks"
    ).model_dump(mode="json")


def test_a_pool_comes_from_standard_input_too(
    at_service: RunningService, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(pool_body())))
    assert len(added(rebase, "-")) == 32


def test_the_same_key_gives_the_same_pool(at_service: RunningService, rebase: Command, file: str) -> None:
    ids = {
        json.loads(rebase("pools", "add", file, "--idempotency-key", file[-200:], "--json").out)["id"]
        for _ in range(2)
    }
    assert len(ids) == 1


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_waiting_shows_progress_and_ends_with_what_became_of_the_pool(
    at_service: RunningService, rebase: Command, file: str, good: bool, code: int, as_json: bool
) -> None:
    store = at_service.store
    known = {pool.id for pool in store.pools.list(DEFAULT_TENANT, limit=200).pools}

    def work() -> None:
        while not (new := {p.id for p in store.pools.list(DEFAULT_TENANT, limit=200).pools} - known):
            time.sleep(0.05)
        (pool_id,) = new
        if good:
            claim = store.queue.claim(pool_id, "tester:1", 60.0)
            assert claim is not None
            store.queue.report_progress(claim, Phase.FACTORIZING, 3, 14, "sites", 2.0)
            time.sleep(0.8)
            store.queue.fail(claim, PublicError(code="hub_unavailable", message="Later."), 0.0)
            finish_pool(store, pool_id)
        else:
            claim = store.queue.claim(pool_id, "tester:1", 60.0)
            assert claim is not None
            store.queue.report_progress(claim, Phase.FACTORIZING, 3, 14, "sites", 2.0)
            time.sleep(0.8)
            store.queue.fail(claim, PublicError(code="unsafe_file", message="A pickle.", hint="Repack."))

    worker = threading.Thread(target=work)
    worker.start()
    done = rebase("pools", "add", file, "--wait", *(["--json"] if as_json else []))
    worker.join()
    assert done.code == code, done.err
    assert "factorizing: 3/14 sites" in done.err
    if as_json:
        pool = json.loads(done.out)
        assert pool["state"] == ("ready" if good else "invalid")
        assert pool["source"]["revision"] == (COMMIT if good else "main")
    elif good:
        for word in ("ready", "3 at 14 common sites", "loo_error 0.25", "names another base", COMMIT[:12]):
            assert word in done.out
    else:
        assert "A pickle. [unsafe_file]" in done.out
        assert "Repack." in done.out


def test_pools_are_listed_by_base_newest_first(
    at_service: RunningService, rebase: Command, tmp_path: Path
) -> None:
    bases = {"source": {"repo_id": "list/old"}, "target": {"repo_id": "list/new"}}
    ids = [added(rebase, write(tmp_path, pool_body(name=f"number {n}", **bases))) for n in range(3)]

    def listed(*filters: str) -> list[str]:
        done = rebase("pools", "ls", *filters, "--json")
        assert done.code == 0, done.err
        return [pool["id"] for pool in json.loads(done.out)["pools"]]

    assert listed("--source", "list/old", "--target", "list/new") == ids[::-1]
    assert listed("--source", "list/old", "--limit", "2") == ids[:0:-1]
    assert listed("--source", "list/new") == []
    shown = rebase("pools", "ls", "--source", "list/old").out
    assert all(pool_id in shown for pool_id in ids)
    assert "number 2" in shown and "validating" in shown and "list/new" in shown
    assert rebase("pools", "ls", "--source", "no/body").out == "No pools.\n"
    assert rebase("pools", "ls", "--source", "../etc").code == 2


def test_a_removed_pool_is_gone_and_its_job_was_cancelled(
    at_service: RunningService, rebase: Command, file: str
) -> None:
    pool_id = added(rebase, file)
    done = rebase("pools", "rm", pool_id, "--json")
    assert (done.code, json.loads(done.out)) == (0, {"deleted": pool_id})
    for command in ("show", "rm"):
        again = rebase("pools", command, pool_id, "--json")
        assert again.code == 1
        assert json.loads(again.out)["error"]["code"] == "not_found"
    assert at_service.store.jobs.get(DEFAULT_TENANT, pool_id).state is JobState.CANCELLED


def test_a_pools_job_shows_in_jobs_and_status_says_where_the_pool_is(
    at_service: RunningService, rebase: Command, file: str
) -> None:
    pool_id = added(rebase, file)
    (row,) = [line for line in rebase("jobs").out.splitlines() if pool_id in line]
    assert row.split()[1:5] == ["pool", "queued", OLD, NEW]
    assert f"rebase pools show {pool_id}" in rebase("status", pool_id).out


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", ["not valid JSON"]),
        ('{"source": NaN}', ["not valid JSON", "NaN"]),
        ("[" * 100_000, ["not valid JSON"]),
        ([], ["is not a JSON object"]),
        (pool_body(source={"repo_id": "../etc"}), ["source.repo_id", "owner/name"]),
        (pool_body(source="acme/base-1"), ["source", "valid dictionary", '{"repo_id"']),
        (pool_body(nmae="x"), ["nmae", "unknown field"]),
        (pool_body(1), ["anchors", "at least 2"]),
        (pool_body(anchors=pool_body(1)["anchors"] * 2), ["anchors[1].source is anchors[0].source again"]),
        (
            pool_body(anchors=[*pool_body(2)["anchors"], {"source": {"repo_id": "a/b"}, "target": {}}]),
            ["anchors[2].target.repo_id", "required"],
        ),
    ],
)
def test_a_file_that_is_wrong_is_told_by_field_before_any_service_is_asked(
    rebase: Command, tmp_path: Path, body: Any, words: list[str]
) -> None:
    done = rebase("pools", "add", write(tmp_path, body), *UNREACHABLE)
    assert done.code == 2, done.err
    for word in ("pool.json", *words):
        assert word in done.err


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_a_file_that_cannot_be_read_is_a_usage_error(
    rebase: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = rebase("pools", "add", name, *UNREACHABLE)
    assert done.code == 2
    assert "cannot be read" in done.err


def test_bytes_that_are_no_text_are_a_usage_error(rebase: Command, tmp_path: Path) -> None:
    (tmp_path / "pool.json").write_bytes(b"\xff\xfe\x00")
    assert rebase("pools", "add", str(tmp_path / "pool.json"), *UNREACHABLE).code == 2


def test_without_a_service_every_command_exits_4(rebase: Command, file: str) -> None:
    for arguments in (("add", file), ("ls",), ("show", "0" * 32), ("rm", "0" * 32)):
        assert rebase("pools", *arguments, *UNREACHABLE).code == 4


def test_an_id_that_is_none_never_reaches_the_service(rebase: Command) -> None:
    for command in ("show", "rm"):
        done = rebase("pools", command, "../jobs", *UNREACHABLE)
        assert done.code == 2
        assert "not an anchor pool id" in done.err


def test_a_conversion_that_names_a_pool_which_is_not_ready_is_told_so(
    at_service: RunningService, rebase: Command, file: str
) -> None:
    pool_id = added(rebase, file)
    arguments = (
        "convert",
        "acme/lora",
        "--target",
        NEW,
        "--method",
        "anchor_ridge",
        "--set",
        f"pool={pool_id}",
    )
    done = rebase(*arguments, "--json")
    assert done.code == 1
    error = json.loads(done.out)["error"]
    assert (error["code"], error["pointer"]) == ("state_conflict", "/method/pool")

    finish_pool(at_service.store, pool_id)
    assert rebase(*arguments, "--json").code == 0


def test_the_client_registers_waits_pages_and_deletes(at_service: RunningService) -> None:
    bases = {"source": {"repo_id": "client/old"}, "target": {"repo_id": "client/new"}}
    with RebaseClient(at_service.url) as client:
        pool = client.register_pool(a_pool(**bases), idempotency_key="client-test")
        same = client.register_pool(pool_body(**bases), idempotency_key="client-test")
        assert same == pool
        finish_pool(at_service.store, pool.id)
        assert client.wait(pool.id).succeeded
        ready = client.get_pool(pool.id)
        assert (ready.state, ready.sites, ready.anchors[0].source.revision) == ("ready", 14, COMMIT)
        more = [client.register_pool(pool_body(**bases)).id for _ in range(55)]
        assert [found.id for found in client.list_pools(source="client/old")] == [*more[::-1], pool.id]
        client.delete_pool(pool.id)
        with pytest.raises(ServiceError) as gone:
            client.get_pool(pool.id)
        assert (gone.value.status, gone.value.error.code) == (404, "not_found")
        with pytest.raises(RequestInvalid):
            client.delete_pool("../jobs")
