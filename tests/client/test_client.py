"""The typed client against a real service process; the test plays the worker on the same database."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebase.cli.request import build_request
from rebase.client.errors import ServiceError, ServiceUnreachable
from rebase.client.http import RebaseClient
from rebase.client.models import Job
from rebase.errors import PublicError, RequestInvalid
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from rebase.store.records import Claim
from support.running_service import RunningService, free_port, running_service, service_process


@pytest.fixture
def client(service: RunningService) -> Iterator[RebaseClient]:
    with RebaseClient(service.url) as made:
        yield made


def request(name: str = "sql-lora") -> ConversionRequest:
    return build_request(adapter=f"acme/{name}", target="acme/new-base")


def claimed(service: RunningService, job: Job) -> Claim:
    claim = service.store.queue.claim(job.id, "tester:1", 60.0)
    assert claim is not None
    return claim


def test_an_accepted_job_is_queued_with_the_services_own_defaults(client: RebaseClient) -> None:
    job = client.convert(request())
    assert (job.kind, job.status, job.done, job.result, job.error) == ("convert", "queued", False, None, None)
    assert job.request["method"]["name"] == "auto"
    assert client.get_job(job.id) == job


def test_a_service_on_this_machine_is_not_asked_through_a_proxy(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")

    with RebaseClient(service.url) as client:
        assert client.is_ready()


def test_a_plain_object_is_judged_by_the_service_which_points_at_every_wrong_field(
    client: RebaseClient,
) -> None:
    body = {"adapter": {"repo_id": "acme/a"}, "target": {"repo_id": "acme/b"}}
    assert client.convert(body).status == "queued"
    with pytest.raises(ServiceError) as caught:
        client.convert(body | {"output": {"max_rank": 0}, "method": "magic"})
    assert caught.value.error.code == "request_invalid"
    assert "/output/max_rank: " in caught.value.error.message
    assert "/method" in caught.value.error.message


def test_one_idempotency_key_gives_one_job_and_refuses_another_body(client: RebaseClient) -> None:
    first = client.convert(request(), idempotency_key="once")
    assert client.convert(request(), idempotency_key="once").id == first.id
    with pytest.raises(ServiceError) as caught:
        client.convert(request("other"), idempotency_key="once")
    assert (caught.value.status, caught.value.error.code) == (422, "idempotency_mismatch")


def test_jobs_are_listed_over_page_borders_newest_first(client: RebaseClient) -> None:
    made = [client.precheck(request("paged")).id for _ in range(53)]
    listed = [job.id for job in client.list_jobs(adapter="acme/paged")]
    assert listed == made[::-1]


def test_jobs_can_be_filtered_by_state(client: RebaseClient) -> None:
    job = client.convert(request("filtered"))
    client.cancel(job.id)
    assert [found.id for found in client.list_jobs(state="cancelled", adapter="acme/filtered")] == [job.id]
    assert list(client.list_jobs(state="queued", adapter="acme/filtered")) == []


def test_a_cancelled_job_is_done_with_an_error_and_can_be_retried(client: RebaseClient) -> None:
    job = client.convert(request())
    cancelled = client.cancel(job.id)
    assert cancelled.done
    assert cancelled.error is not None and cancelled.error.code == "cancelled"
    again = client.retry(job.id)
    assert (again.status, again.done, again.error) == ("queued", False, None)


def test_an_unknown_job_is_a_typed_error(client: RebaseClient) -> None:
    with pytest.raises(ServiceError) as caught:
        client.get_job("0" * 32)
    assert (caught.value.status, caught.value.error.code) == (404, "not_found")


@pytest.mark.parametrize("job_id", ["", "..", "a/cancel", "a?b", "x" * 65, "\n"])
def test_what_is_no_job_id_never_becomes_another_path(client: RebaseClient, job_id: str) -> None:
    with pytest.raises(RequestInvalid):
        client.get_job(job_id)


def test_a_refused_filter_points_at_its_field(client: RebaseClient) -> None:
    with pytest.raises(ServiceError) as caught:
        list(client.list_jobs(state="sleeping"))
    assert caught.value.status == 422
    assert caught.value.error.pointer is not None and "state" in caught.value.error.pointer


def test_the_methods_come_with_their_parameters(client: RebaseClient) -> None:
    by_name = {method.name: method for method in client.list_methods()}
    assert "rank" in by_name["cross_lora"].parameters["properties"]


def test_wait_sees_progress_and_returns_the_result(service: RunningService, client: RebaseClient) -> None:
    job = client.convert(request())
    seen: list[Job] = []

    def work() -> None:
        claim = claimed(service, job)
        for done in (1, 2):
            service.store.queue.report_progress(claim, Phase.TRANSFERRING, done, 2, "sites", 0.5)
            time.sleep(0.7)
        service.store.queue.mark_publishing(claim)
        service.store.queue.succeed(claim, {"verdict": "compatible"})

    worker = threading.Thread(target=work)
    worker.start()
    done = client.wait(job.id, seen.append, timeout_s=30)
    worker.join()
    assert done.succeeded and done.result == {"verdict": "compatible"}
    assert {update.progress.done for update in seen if update.progress is not None} >= {1}
    assert seen[-1] == done


def test_wait_gives_up_when_told_and_leaves_the_job_alone(client: RebaseClient) -> None:
    job = client.convert(request())
    with pytest.raises(TimeoutError):
        client.wait(job.id, timeout_s=0.1)
    assert client.get_job(job.id).status == "queued"


def test_events_end_with_the_job_and_resume_after_the_last_one_seen(
    service: RunningService, client: RebaseClient
) -> None:
    job = client.convert(request())
    claim = claimed(service, job)
    service.store.queue.fail(claim, PublicError(code="unsafe_file", message="No."), None)
    history = list(client.stream_events(job.id))
    moves = [event.data["state"] for event in history if event.type == "state"]
    assert moves == ["queued", "running", "failed"]
    assert history[0].id < history[-1].id
    assert list(client.stream_events(job.id, after=history[0].id)) == history[1:]
    assert list(client.stream_events(job.id, after=history[-1].id)) == []


def test_events_of_an_unknown_job_are_a_typed_error(client: RebaseClient) -> None:
    with pytest.raises(ServiceError) as caught:
        list(client.stream_events("0" * 32))
    assert caught.value.error.code == "not_found"


def test_diagnostics_are_empty_before_the_precheck(client: RebaseClient) -> None:
    assert client.get_diagnostics(client.convert(request()).id)["sites"] == []


def test_a_wait_and_a_stream_outlive_a_restart_of_the_service(tmp_path: Path) -> None:
    with running_service(tmp_path) as first:
        port = int(first.url.rpartition(":")[2])
        with RebaseClient(first.url) as client:
            job = client.convert(request())
            moves: list[str] = []

            def listen() -> None:
                with RebaseClient(first.url) as listener:
                    moves.extend(e.data["state"] for e in listener.stream_events(job.id) if e.type == "state")

            listening = threading.Thread(target=listen)
            listening.start()
            waited: list[Job] = []
            waiting = threading.Thread(target=lambda: waited.append(client.wait(job.id, timeout_s=60)))
            waiting.start()
            time.sleep(1)
            first.process.kill()
            first.process.wait()
            with service_process(tmp_path, port):
                claim = claimed(first, job)
                service_error = PublicError(code="unsafe_file", message="No.")
                first.store.queue.fail(claim, service_error, None)
                waiting.join(30)
                listening.join(30)
    assert [job.status for job in waited] == ["failed"]
    assert moves == ["queued", "running", "failed"]


def test_nobody_there_is_unreachable_and_says_how_to_start_one() -> None:
    with RebaseClient(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.is_ready()
        with pytest.raises(ServiceUnreachable) as caught:
            client.get_job("0" * 32)
    assert caught.value.error.code == "service_unreachable"
    assert "rebase up" in (caught.value.error.hint or "")


@pytest.mark.parametrize("url", ["not a url", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_unreachable(url: str) -> None:
    with pytest.raises(ServiceUnreachable), RebaseClient(url) as client:
        client.get_job("0" * 32)


class _SomethingElse(http.server.BaseHTTPRequestHandler):
    """A web server that is no Rebase service."""

    def do_GET(self) -> None:
        body = b"<html>hello</html>"
        self.send_response(200 if self.path.startswith("/jobs") else 418)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_another_web_server_is_not_mistaken_for_a_service() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), _SomethingElse)
    threading.Thread(target=server.serve_forever).start()
    try:
        with RebaseClient(f"http://127.0.0.1:{server.server_port}") as client:
            assert not client.is_ready()
            for call in (
                lambda: client.get_job("0" * 32),
                client.list_methods,
                lambda: list(client.list_jobs()),
            ):
                with pytest.raises(ServiceUnreachable):
                    call()
    finally:
        server.shutdown()
        server.server_close()
