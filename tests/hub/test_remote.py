"""The Hub over real HTTP: who may do what, what goes wrong on the way, and how little is fetched."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import get_session

from rebase.errors import (
    FileMissing,
    HubError,
    HubUnauthorized,
    HubUnavailable,
    OutputForbidden,
    RepoGated,
    RepoNotFound,
    UnsafeFile,
)
from rebase.hub.base import ByteSource, PinnedRepo, Published
from rebase.hub.files import FileSource
from rebase.hub.local import LocalHub
from rebase.hub.remote import RemoteHub, can_create_repo
from rebase.hub.transport import RangeSource
from rebase.runtime import make_hub
from rebase.schemas.repos import RepoRef
from rebase.settings import Settings
from support.standin_hub import StandinHub

ROOT = Path(__file__).parents[2]
SIZE = 50_000
# The Hub client's own way of sending large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def server() -> Iterator[StandinHub]:
    with StandinHub() as server:
        server.add_token("hf_acme", user="acme")
        server.add_token("hf_other", user="other")
        server.add_token("hf_reader", user="acme", role="read")
        server.add_token("hf_member", user="bob", orgs={"acme": "write", "guests": "read"})
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(250)) * (SIZE // 250))
    return folder


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# moved\n")
    (folder / "adapter_model.safetensors").write_bytes(b"tensors")
    return folder


def hub_of(
    server: StandinHub, tmp_path: Path, token: str | None = "hf_acme", timeout_s: float = 10
) -> RemoteHub:
    return RemoteHub(token, server.url, tmp_path / "cache", timeout_s=timeout_s, wait_s=0.01)


def publish(hub: RemoteHub, folder: Path, *, parent: str | None = None, create_pr: bool = False) -> Published:
    message = "Move a to b\n\nRebase-Job: 1"
    return hub.publish("acme/out", folder, message=message, parent=parent, private=True, create_pr=create_pr)


def ranged(hub: RemoteHub, wanted: int = 100) -> tuple[PinnedRepo, ByteSource]:
    pinned = hub.resolve(RepoRef(repo_id="acme/base"))
    return pinned, hub.open(pinned, "model.safetensors", expected_bytes=wanted)


def test_a_private_repo_does_not_exist_for_strangers(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model, private=True)
    hub_of(server, tmp_path).check_read("acme/base")
    hub_of(server, tmp_path, "hf_member").check_read("acme/base")
    for token in ("hf_other", None):
        with pytest.raises(RepoNotFound, match="is private") as caught:
            hub_of(server, tmp_path, token).check_read("acme/base")
        assert "REBASE_HUB_TOKEN" in (caught.value.hint or "")


def test_a_gated_repo_is_told_apart_from_a_missing_one(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model, gated=True)
    hub_of(server, tmp_path).check_read("acme/base")
    for token in ("hf_other", None):
        hub = hub_of(server, tmp_path, token)
        with pytest.raises(RepoGated, match="gated") as caught:
            hub.check_read("acme/base")
        assert "Request access" in (caught.value.hint or "")
        with pytest.raises(RepoGated):
            hub.fetch(hub.resolve(RepoRef(repo_id="acme/base")), "config.json")


def test_a_cached_file_does_not_let_a_stranger_in(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model, private=True)
    mine = hub_of(server, tmp_path)
    mine.fetch(mine.resolve(RepoRef(repo_id="acme/base")), "config.json")
    with pytest.raises(RepoNotFound):
        hub_of(server, tmp_path, "hf_other").check_read("acme/base")


def test_a_wrong_token_is_named_and_never_shown(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path, "hf_wrong")
    for ask in (
        lambda: hub.check_read("acme/base"),
        lambda: hub.resolve(RepoRef(repo_id="acme/base")),
        lambda: hub.check_write("acme/base"),
        lambda: hub.check_write("acme/new"),
    ):
        with pytest.raises(HubUnauthorized, match="does not accept the token") as caught:
            ask()
        assert "hf_wrong" not in f"{caught.value.message}{caught.value.hint}"


def test_a_disabled_repo_is_not_found(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model)
    server.store.repos["acme/base"].disabled = True
    with pytest.raises(RepoNotFound, match="disabled"):
        hub_of(server, tmp_path).check_read("acme/base")


def test_a_token_lying_on_the_machine_is_never_sent(
    server: StandinHub, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_acme")
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path, None)
    hub.check_read("acme/base")
    hub.fetch(hub.resolve(RepoRef(repo_id="acme/base")), "model.safetensors")
    assert not [request for request in server.requests if "authorization" in request.headers]


@pytest.mark.parametrize("whole", [True, False])
def test_the_token_never_reaches_the_storage_host(
    server: StandinHub, tmp_path: Path, model: Path, whole: bool
) -> None:
    server.add_repo("acme/base", model, private=True)
    hub = hub_of(server, tmp_path)
    _, source = ranged(hub, SIZE if whole else 100)
    assert len(source.read(0, 100)) == 100
    stored = [request for request in server.requests if request.path.startswith("/storage/")]
    assert stored
    assert all(request.host.startswith("localhost:") for request in stored)
    assert not [request for request in stored if "authorization" in request.headers]
    asked = [request for request in server.requests if "/resolve/" in request.path]
    assert all("authorization" in request.headers for request in asked)


def test_only_the_bytes_that_are_read_are_sent(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model)
    _, source = ranged(hub_of(server, tmp_path), SIZE // 2 - 1)
    assert isinstance(source, RangeSource)
    source.read(1000, 50)
    stored = [request for request in server.requests if request.path.startswith("/storage/")]
    assert [request.headers["range"] for request in stored] == ["bytes=1000-1049"]
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_file_of_which_half_is_wanted_or_that_is_cached_is_read_from_disk(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path)
    assert isinstance(ranged(hub, SIZE // 2)[1], FileSource)
    server.requests.clear()
    source = ranged(hub, 1)[1]
    assert isinstance(source, FileSource)
    source.read(0, 10)
    assert not [request for request in server.requests if "/resolve/" in request.path]


def test_a_range_that_was_not_asked_for_is_unsafe(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model)
    _, source = ranged(hub_of(server, tmp_path))
    server.fail("GET /storage/", kind="wrong_range")
    with pytest.raises(
        UnsafeFile, match=r"different bytes \('bytes 1-2/3'\) from those requested \(10-19/50000\)"
    ):
        source.read(10, 10)


def test_a_truncated_range_is_read_again(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model)
    _, source = ranged(hub_of(server, tmp_path))
    server.fail("GET /storage/", kind="truncate", times=2)
    assert source.read(0, 4) == b"\0\1\2\3"
    server.fail("GET /storage/", kind="truncate", times=3)
    with pytest.raises(HubUnavailable, match=r"'model.safetensors' of acme/base"):
        source.read(0, 4)


def test_a_server_without_ranges_costs_one_whole_download(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model)
    _, source = ranged(hub_of(server, tmp_path))
    server.fail("GET /storage/", kind="ignore_range")
    assert source.read(300, 3) == bytes([50, 51, 52])
    server.requests.clear()
    assert source.read(600, 3) == bytes([100, 101, 102])
    assert not server.requests


def test_a_truncated_download_is_resumed(server: StandinHub, tmp_path: Path, model: Path) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path)
    pinned = hub.resolve(RepoRef(repo_id="acme/base"))
    server.fail("GET /storage/", kind="truncate")
    content = hub.fetch(pinned, "model.safetensors").read_bytes()
    assert content == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_waited_out_and_a_lasting_one_is_retryable(
    server: StandinHub, tmp_path: Path, model: Path, status: int
) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path)
    server.fail("/api/models", status=status, times=2)
    hub.check_read("acme/base")
    server.fail("/api/models", status=status, times=3)
    with pytest.raises(HubUnavailable, match=f"responded with status {status}") as caught:
        hub.check_read("acme/base")
    assert caught.value.retryable


@pytest.mark.parametrize("kind", ["drop", "hang"])
def test_a_broken_or_silent_connection_is_waited_out(
    server: StandinHub, tmp_path: Path, model: Path, kind: str
) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path, timeout_s=0.3)
    server.fail("/api/models", kind=kind, seconds=1)
    hub.check_read("acme/base")


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with StandinHub() as gone:
        hub = hub_of(gone, tmp_path, None)
    with pytest.raises(HubUnavailable, match="acme/base"):
        hub.check_read("acme/base")
    with pytest.raises(HubUnavailable):
        hub.find_commit("acme/base", "job")


def test_a_hub_that_asks_for_an_hour_is_unavailable_at_once(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path)
    pinned = hub.resolve(RepoRef(repo_id="acme/base"))
    server.fail("GET /storage/", status=429, times=9, headers={"Retry-After": "3600"})
    start = time.monotonic()
    with pytest.raises(HubUnavailable, match="3600 s"):
        hub.fetch(pinned, "model.safetensors")
    assert time.monotonic() - start < 5


def test_an_answer_that_is_not_the_hub_s_is_an_error_of_its_own(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model)
    server.fail("/revision/", status=200)
    with pytest.raises(HubError, match="response is not valid"):
        hub_of(server, tmp_path).resolve(RepoRef(repo_id="acme/base"))
    server.fail("/revision/", status=418)
    with pytest.raises(HubError, match="rejected the request with status 418: out of order"):
        hub_of(server, tmp_path).resolve(RepoRef(repo_id="acme/base"))


def test_the_default_output_has_no_double_dashes(server: StandinHub, tmp_path: Path) -> None:
    assert hub_of(server, tmp_path).make_output_name("acme/a---b--c") == "acme/a-b-c"


@pytest.mark.parametrize("token", ["hf_other", "hf_reader", None])
def test_without_write_access_the_output_is_forbidden_before_the_work(
    server: StandinHub, tmp_path: Path, model: Path, result: Path, token: str | None
) -> None:
    server.add_repo("acme/out", model)
    hub = hub_of(server, tmp_path, token)
    for repo_id in ("acme/out", "acme/new"):
        with pytest.raises(OutputForbidden, match=repo_id) as caught:
            hub.check_write(repo_id)
        assert "REBASE_HUB_TOKEN" in (caught.value.hint or "")


def test_a_member_writes_for_the_organisation_and_a_guest_does_not(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/out", model)
    server.add_repo("guests/out", model)
    hub = hub_of(server, tmp_path, "hf_member")
    for repo_id in ("acme/out", "acme/new", "bob/new"):
        hub.check_write(repo_id)
    for repo_id in ("guests/out", "guests/new"):
        with pytest.raises(OutputForbidden):
            hub.check_write(repo_id)


def test_a_pull_request_needs_only_read_access(
    server: StandinHub, tmp_path: Path, model: Path, result: Path
) -> None:
    server.add_repo("acme/out", model)
    hub = hub_of(server, tmp_path, "hf_other")
    hub.check_write("acme/out", create_pr=True)
    head = hub.get_latest("acme/out")
    assert head is not None
    proposed = publish(hub, result, parent=head.sha, create_pr=True)
    assert proposed.pull_request == f"{server.url}/acme/out/discussions/1"
    with pytest.raises(OutputForbidden):
        publish(hub, result, parent=head.sha)


def test_a_fine_grained_token_writes_where_its_scope_says() -> None:
    scope = {"entity": {"name": "acme"}, "permissions": ["repo.write"]}
    token = {"role": "fineGrained", "fineGrained": {"scoped": [scope]}}
    who = {"name": "bob", "auth": {"accessToken": token}}
    assert can_create_repo(who, "acme")
    assert not can_create_repo(who, "bob")
    assert can_create_repo({"name": "bob"}, "bob")


def test_a_commit_whose_answer_got_lost_is_found_and_not_repeated(
    server: StandinHub, tmp_path: Path, result: Path
) -> None:
    hub = hub_of(server, tmp_path)
    server.fail("POST .*/commit/", kind="drop_after")
    published = publish(hub, result)
    head = hub.get_latest("acme/out")
    assert head is not None
    assert published.commit == head.sha
    titles = [commit.title for commit in server.store.repos["acme/out"].commits.values()]
    assert titles == ["initial commit", "Move a to b"]


def test_a_pull_request_whose_answer_got_lost_is_found(
    server: StandinHub, tmp_path: Path, model: Path, result: Path
) -> None:
    parent = server.add_repo("acme/out", model)
    server.fail("POST .*/commit/", kind="drop_after")
    published = publish(hub_of(server, tmp_path), result, parent=parent, create_pr=True)
    assert published.pull_request == f"{server.url}/acme/out/discussions/1"
    assert server.store.repos["acme/out"].pull_requests() == [1]


def test_a_commit_that_never_arrived_is_retryable(server: StandinHub, tmp_path: Path, result: Path) -> None:
    hub = hub_of(server, tmp_path)
    server.fail("POST .*/commit/", kind="drop")
    with pytest.raises(HubUnavailable):
        publish(hub, result)
    assert hub.find_commit("acme/out", "Rebase-Job: 1") is None
    head = hub.get_latest("acme/out")
    assert head is not None
    assert head.files.keys() == {".gitattributes"}
    publish(hub, result, parent=head.sha)


def test_a_failed_upload_is_retryable_and_commits_nothing(
    server: StandinHub, tmp_path: Path, result: Path
) -> None:
    server.fail("POST .*/objects/verify", status=404)
    with pytest.raises(HubError):
        publish(hub_of(server, tmp_path), result)
    assert len(server.store.repos["acme/out"].commits) == 1


def test_a_card_that_the_hub_refuses_is_named(server: StandinHub, tmp_path: Path, result: Path) -> None:
    (result / "README.md").write_text("no metadata")
    with pytest.raises(HubError, match=r"metadata of README\.md"):
        publish(hub_of(server, tmp_path), result)


def test_a_marker_is_found_behind_more_than_a_page_of_commits(
    server: StandinHub, tmp_path: Path, result: Path
) -> None:
    hub = hub_of(server, tmp_path)
    published = publish(hub, result)
    repo = server.store.repos["acme/out"]
    for number in range(120):
        server.store.commit(repo, "main", f"later {number}", "", {})
    assert hub.find_commit("acme/out", "Rebase-Job: 1") == published


def test_discussions_that_are_turned_off_hide_nothing_else(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/out", model)
    server.fail("/discussions", status=403)
    assert hub_of(server, tmp_path).find_commit("acme/out", "job") is None


def test_a_full_disk_is_named_and_leaves_no_part_of_a_file(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model)
    cache = tmp_path / "cache"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    arguments = ["fetch", server.url, "hf_acme", "acme/base", "model.safetensors", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", "support.hub_faults", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_DISABLE_XET": "1"},
    )
    assert done.stdout.split() == ["disk_full", "True"]
    assert not list(cache.rglob("*.incomplete"))


def test_a_file_that_is_not_in_the_pinned_commit_is_not_asked_for(
    server: StandinHub, tmp_path: Path, model: Path
) -> None:
    server.add_repo("acme/base", model)
    hub = hub_of(server, tmp_path)
    pinned = hub.resolve(RepoRef(repo_id="acme/base"))
    server.requests.clear()
    with pytest.raises(FileMissing):
        hub.open(pinned, "nope.safetensors", expected_bytes=1)
    assert not server.requests


def test_the_settings_choose_the_hub(
    tmp_path: Path, server: StandinHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.add_repo("acme/base", model, private=True)
    assert isinstance(make_hub(Settings(hub_dir=tmp_path)), LocalHub)
    make_hub(Settings(hub_token="hf_acme")).check_read("acme/base")
    with pytest.raises(RepoNotFound):
        make_hub(Settings()).check_read("acme/base")


def test_what_one_request_is_told_to_remember_the_next_one_does_not_say(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Sticky(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Cookie"))
            self.send_response(200)
            self.send_header("Set-Cookie", "who=acme; Path=/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Sticky) as sticky:
        threading.Thread(target=sticky.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{sticky.server_port}"
        for token in ("hf_acme", "hf_other"):
            RemoteHub(token, url, tmp_path)
            get_session().get(f"{url}/x")
        sticky.shutdown()

    assert seen == [None, None]
