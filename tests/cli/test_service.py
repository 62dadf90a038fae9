"""The commands that talk to a service: exit codes, JSON, progress, Ctrl-C. The test plays the worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rebase.client.http import RebaseClient
from rebase.errors import PublicError
from rebase.schemas.states import Phase
from rebase.store.records import Claim, LayerSimilarityMatrix
from support.command import REBASE, Command
from support.running_service import RunningService, clean_environment, free_port, running_service


def queued_job(rebase: Command) -> str:
    done = rebase("convert", "acme/sql-lora", "--target", "acme/new", "--json")
    assert done.code == 0, done.err
    return str(json.loads(done.out)["id"])


def finish(service: RunningService, job_id: str, end: Callable[[Claim], object]) -> None:
    claim = service.store.queue.claim(job_id, "tester:1", 60.0)
    assert claim is not None
    service.store.queue.report_progress(claim, Phase.TRANSFERRING, 1, 4, "sites", 2.0)
    time.sleep(0.8)
    end(claim)


def ends(service: RunningService) -> dict[str, Callable[[Claim], Any]]:
    def succeed(claim: Claim) -> None:
        row = {"target": "0.q_proj", "measurements": {"kept": 0.5}, "flags": ["odd"]}
        service.store.queue.save_diagnostics(claim, {}, [row], "compatible")
        service.store.queue.mark_publishing(claim)
        output = {"repo_id": "acme/out", "commit": "0" * 40, "url": "/hub/acme/out", "pull_request": None}
        result = {"verdict": "compatible", "reasons": [{"message": "[b]ecause"}], "output": output}
        service.store.queue.succeed(claim, result)

    return {
        "succeeded": succeed,
        "failed": lambda c: service.store.queue.fail(
            c, PublicError(code="unsafe_file", message="A pickle."), None
        ),
        "rejected": lambda c: service.store.queue.reject(
            c, PublicError(code="incompatible", message="No way.")
        ),
    }


@pytest.mark.parametrize(("end", "code"), [("succeeded", 0), ("failed", 1), ("rejected", 3)])
@pytest.mark.parametrize("as_json", [False, True])
def test_following_a_job_ends_with_the_exit_code_of_its_state(
    at_service: RunningService, rebase: Command, end: str, code: int, as_json: bool
) -> None:
    job_id = queued_job(rebase)
    worker = threading.Thread(target=finish, args=(at_service, job_id, ends(at_service)[end]))
    worker.start()
    done = rebase("status", job_id, "--wait", *(["--json"] if as_json else []))
    worker.join()
    assert done.code == code
    assert "transferring: 1/4 sites" in done.err
    if as_json:
        assert json.loads(done.out)["status"] == end
    else:
        assert end in done.out
        assert "transferring" not in done.out


def test_a_finished_job_shows_verdict_reasons_place_and_measurements(
    at_service: RunningService, rebase: Command
) -> None:
    job_id = queued_job(rebase)
    finish(at_service, job_id, ends(at_service)["succeeded"])
    done = rebase("status", job_id, "--diagnostics")
    for text in ("compatible", "[b]ecause", "acme/out@000", "/hub/acme/out", "kept", "0.5", "flag odd"):
        assert text in done.out
    document = json.loads(rebase("status", job_id, "--diagnostics", "--json").out)
    assert document["diagnostics"]["sites"][0]["target"] == "0.q_proj"


def test_a_job_that_read_a_text_shows_how_many_layers_are_alike(
    at_service: RunningService, rebase: Command
) -> None:
    job_id = queued_job(rebase)
    told = {"layer_map": {"coverage": 0.5, "threshold": 0.7}}
    layers = LayerSimilarityMatrix([[0.9, 0.25]], [0, 0])
    finish(
        at_service,
        job_id,
        lambda c: at_service.store.queue.save_diagnostics(c, told, [], "uncertain", layers),
    )
    shown = rebase("status", job_id, "--diagnostics").out
    assert "50% of the target's have a source layer above CKA 0.7" in shown


def test_a_rejected_job_shows_every_reason(at_service: RunningService, rebase: Command) -> None:
    job_id = queued_job(rebase)
    reasons = [{"message": "The bases differ."}, {"message": "So do their words."}]

    def reject(claim: Claim) -> None:
        at_service.store.queue.save_diagnostics(claim, {"precheck": {"reasons": reasons}}, [], "incompatible")
        at_service.store.queue.reject(claim, PublicError(code="incompatible", message="The bases differ."))

    finish(at_service, job_id, reject)
    done = rebase("status", job_id)
    assert done.code == 3
    assert "- The bases differ." in done.out and "- So do their words." in done.out


def test_a_precheck_that_finds_a_pair_incompatible_exits_3(
    at_service: RunningService, rebase: Command
) -> None:
    def work() -> None:
        with RebaseClient(at_service.url) as client:
            while not (found := list(client.list_jobs(adapter="acme/pre"))):
                time.sleep(0.05)
        claim = at_service.store.queue.claim(found[0].id, "tester:1", 60.0)
        assert claim is not None
        at_service.store.queue.save_diagnostics(claim, {}, [], "incompatible")
        at_service.store.queue.succeed(claim, {"verdict": "incompatible", "reasons": []})

    worker = threading.Thread(target=work)
    worker.start()
    done = rebase("precheck", "acme/pre", "--target", "acme/new", "--json")
    worker.join()
    assert done.code == 3
    assert json.loads(done.out)["verdict"] == "incompatible"


def test_jobs_are_listed_and_an_empty_list_says_so(at_service: RunningService, rebase: Command) -> None:
    job_id = queued_job(rebase)
    assert job_id in rebase("jobs").out
    listed = json.loads(rebase("jobs", "--limit", "1", "--json").out)["jobs"]
    assert [job["id"] for job in listed] == [job_id]
    assert rebase("jobs", "--adapter", "no/body").out == "No jobs.\n"


def test_cancel_and_retry_steer_a_job(at_service: RunningService, rebase: Command) -> None:
    job_id = queued_job(rebase)
    assert json.loads(rebase("cancel", job_id, "--json").out)["status"] == "cancelled"
    assert json.loads(rebase("retry", job_id, "--json").out)["status"] == "queued"


def test_ctrl_c_while_waiting_leaves_the_job_and_says_how_to_cancel(
    at_service: RunningService, rebase: Command
) -> None:
    job_id = queued_job(rebase)
    waiting = subprocess.Popen(
        [*REBASE, "status", job_id, "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    first = waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=30)
    assert first == "queued\n"
    assert waiting.returncode == 130
    assert f"rebase cancel {job_id}" in err and err.endswith("Interrupted.\n")
    assert "Traceback" not in err
    assert json.loads(rebase("status", job_id, "--json").out)["status"] == "queued"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["convert", "acme/a", "--target", "acme/b", "--set", "rank=0"], 2, "method.rank"),
        (["convert", "acme/a", "--target", "acme/b", "--method", "magic"], 2, "magic"),
        (["convert", "acme/a"], 2, "--target"),
        (["frobnicate"], 2, "frobnicate"),
        (["jobs", "--state", "sleeping"], 2, "state"),
        (["jobs", "--limit", "0"], 2, "--limit"),
        (["status", "../x"], 2, "../x"),
        (["status", "0" * 32], 1, "job"),
        (["methods", "magic"], 2, "cross_lora"),
        (["cache", "prune", "--to", "much"], 2, "much"),
        (["keys", "create", "--tenant", "Not Good"], 2, "tenant"),
        (["keys", "revoke", "0" * 32], 1, "no such key"),
        (["up", "--port", "99999"], 2, "--port"),
    ],
)
def test_an_error_has_its_exit_code_one_sentence_and_one_document(
    at_service: RunningService, rebase: Command, arguments: list[str], code: int, text: str
) -> None:
    done = rebase(*arguments)
    assert done.code == code
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert text.lower() in done.err.lower()
    assert "Traceback" not in done.err
    if arguments[0] != "up":
        assert set(json.loads(rebase(*arguments, "--json").out)) == {"error"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "acme/a", "--target", "acme/b"],
        ["precheck", "acme/a", "--target", "acme/b"],
        ["status", "0" * 32],
        ["jobs"],
        ["cancel", "0" * 32],
        ["retry", "0" * 32],
    ],
)
def test_no_service_is_exit_code_4(rebase: Command, arguments: list[str]) -> None:
    done = rebase(*arguments, "--url", f"http://127.0.0.1:{free_port()}", "--json")
    assert done.code == 4
    assert json.loads(done.out)["error"]["code"] == "service_unreachable"


def test_the_api_key_travels_from_the_environment(
    tmp_path: Path, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REBASE_HOME", str(tmp_path))
    with running_service(tmp_path, REBASE_AUTH="keys") as service:
        monkeypatch.setenv("REBASE_URL", service.url)
        made = json.loads(rebase("keys", "create", "--tenant", "acme", "--name", "ci", "--json").out)
        refused = rebase("jobs")
        assert refused.code == 1
        assert "API key" in refused.err and "Set REBASE_API_KEY" in refused.err
        monkeypatch.setenv("REBASE_API_KEY", made["key"])
        assert rebase("jobs").out == "No jobs.\n"
        listed = rebase("keys", "ls", "--json").out
        assert made["key"] not in listed
        assert json.loads(listed)["keys"][0]["name"] == "ci"
        assert rebase("keys", "revoke", json.loads(listed)["keys"][0]["id"]).code == 0


@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--json"], ["methods", "magic", "--json"]], ids=" ".join
)
def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    env = clean_environment(tmp_path)
    process = subprocess.Popen(
        [*REBASE, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, env=env
    )
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert process.returncode in {1, 2}
    assert "Traceback" not in err and "BrokenPipe" not in err
