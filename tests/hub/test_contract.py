"""What the pipeline may rely on, for both hubs: the folder, and the real Hub client against a server over
HTTP.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rebase.errors import (
    FileMissing,
    OutputForbidden,
    ParentMoved,
    RepoNotFound,
    RequestInvalid,
    RevisionNotFound,
    UnsafeFile,
)
from rebase.hub.base import Hub, Published
from rebase.hub.local import LocalHub
from rebase.hub.remote import RemoteHub
from rebase.schemas.repos import RepoRef
from support.standin_hub import StandinHub

SIZE = 50_000
# The Hub client's own way of sending large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@dataclass
class Place:
    """A hub with a way to put repos into it that does not go through the port."""

    hub: Hub
    add: Callable[[str, Path], object]


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        root = tmp_path / "hub"
        yield Place(LocalHub(root), lambda repo_id, folder: shutil.copytree(folder, root / repo_id))
        return
    with StandinHub() as server:
        token = server.add_token("hf_acme", user="acme")
        hub = RemoteHub(token, server.url, tmp_path / "cache", timeout_s=10, wait_s=0.01)
        yield Place(hub, server.add_repo)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "sub" / "notes.txt").write_text("notes")
    (folder / "model.safetensors").write_bytes(bytes(range(250)) * (SIZE // 250))
    return folder


@pytest.fixture
def result(tmp_path: Path) -> Path:
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"tensors")
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# moved\n")
    return folder


def publish(
    hub: Hub, folder: Path, job: str, parent: str | None = None, *, create_pr: bool = False
) -> Published:
    message = f"Move a to b\n\nRebase-Job: {job}"
    return hub.publish("acme/out", folder, message=message, parent=parent, private=True, create_pr=create_pr)


def test_a_branch_is_pinned_to_a_sha_with_every_file_and_its_size(place: Place, model: Path) -> None:
    place.add("acme/base", model)
    pinned = place.hub.resolve(RepoRef(repo_id="acme/base"))
    assert len(pinned.sha) == 40
    assert int(pinned.sha, 16) >= 0
    sizes = {path: size for path, size in pinned.files.items() if path != ".gitattributes"}
    assert sizes == {"config.json": 23, "model.safetensors": SIZE, "sub/notes.txt": 5}
    assert place.hub.resolve(RepoRef(repo_id="acme/base", revision=pinned.sha)) == pinned


def test_a_file_is_fetched_whole(place: Place, model: Path) -> None:
    place.add("acme/base", model)
    pinned = place.hub.resolve(RepoRef(repo_id="acme/base"))
    assert place.hub.fetch(pinned, "sub/notes.txt").read_text() == "notes"
    large = place.hub.fetch(pinned, "model.safetensors")
    assert large.read_bytes() == (model / "model.safetensors").read_bytes()


@pytest.mark.parametrize("wanted", [None, 100, SIZE])
def test_any_part_of_a_file_can_be_read(place: Place, model: Path, wanted: int | None) -> None:
    place.add("acme/base", model)
    pinned = place.hub.resolve(RepoRef(repo_id="acme/base"))
    source = place.hub.open(pinned, "model.safetensors", expected_bytes=wanted)
    content = (model / "model.safetensors").read_bytes()
    assert source.size == SIZE
    for offset, length in [(0, 8), (1234, 4567), (SIZE - 1, 1), (7, 0)]:
        assert source.read(offset, length) == content[offset : offset + length]
    buffer = bytearray(300)
    source.read_into(40_000, memoryview(buffer))
    assert buffer == content[40_000:40_300]


@pytest.mark.parametrize("wanted", [None, 100])
@pytest.mark.parametrize(("offset", "length"), [(SIZE - 1, 2), (SIZE, 1), (-1, 1)])
def test_reading_past_the_end_is_unsafe(
    place: Place, model: Path, wanted: int | None, offset: int, length: int
) -> None:
    place.add("acme/base", model)
    pinned = place.hub.resolve(RepoRef(repo_id="acme/base"))
    source = place.hub.open(pinned, "model.safetensors", expected_bytes=wanted)
    with pytest.raises(UnsafeFile, match="truncated"):
        source.read(offset, length)


def test_a_folder_of_a_repo_is_read_as_a_repo(place: Place, model: Path) -> None:
    (model / "sub" / "deep").mkdir()
    (model / "sub" / "deep" / "model.safetensors").write_bytes(bytes(range(250)))
    place.add("acme/base", model)
    whole = place.hub.resolve(RepoRef(repo_id="acme/base"))
    folder = place.hub.resolve(RepoRef(repo_id="acme/base", subfolder="sub"))
    assert (folder.sha, folder.subfolder) == (whole.sha, "sub")
    assert folder.files == {"notes.txt": 5, "deep/model.safetensors": 250}
    assert place.hub.fetch(folder, "notes.txt").read_text() == "notes"
    assert place.hub.open(folder, "deep/model.safetensors", expected_bytes=10).read(5, 3) == bytes([5, 6, 7])
    assert folder.identity != whole.identity
    for ask in (
        lambda: place.hub.fetch(folder, "config.json"),
        lambda: place.hub.open(folder, "config.json"),
    ):
        with pytest.raises(FileMissing, match=r"config\.json"):
            ask()


@pytest.mark.parametrize("subfolder", ["nope", "su", "config.json"])
def test_a_folder_that_is_not_in_the_repo_is_named_with_those_that_are(
    place: Place, model: Path, subfolder: str
) -> None:
    place.add("acme/base", model)
    with pytest.raises(FileMissing, match=f"no folder '{subfolder}'") as caught:
        place.hub.resolve(RepoRef(repo_id="acme/base", subfolder=subfolder))
    assert "sub" in (caught.value.hint or "")


def test_a_repo_may_hold_nothing_but_folders(place: Place, model: Path) -> None:
    place.add("acme/library", model.parent)
    assert "config.json" in place.hub.resolve(RepoRef(repo_id="acme/library", subfolder="model")).files


def test_a_missing_file_is_named(place: Place, model: Path) -> None:
    place.add("acme/base", model)
    pinned = place.hub.resolve(RepoRef(repo_id="acme/base"))
    for ask in (lambda: place.hub.fetch(pinned, "nope.json"), lambda: place.hub.open(pinned, "nope.json")):
        with pytest.raises(FileMissing, match=r"nope\.json"):
            ask()


@pytest.mark.parametrize("path", ["../config.json", "/etc/passwd", "sub/../../config.json"])
def test_a_path_out_of_the_repo_reads_nothing(place: Place, model: Path, path: str) -> None:
    place.add("acme/base", model)
    pinned = place.hub.resolve(RepoRef(repo_id="acme/base"))
    with pytest.raises(FileMissing):
        place.hub.open(pinned, path)


def test_an_unknown_repo_is_not_found(place: Place) -> None:
    for ask in (
        lambda: place.hub.check_read("acme/nope"),
        lambda: place.hub.resolve(RepoRef(repo_id="acme/nope")),
    ):
        with pytest.raises(RepoNotFound, match="acme/nope") as caught:
            ask()
        assert caught.value.hint
    assert place.hub.get_latest("acme/nope") is None
    assert place.hub.find_commit("acme/nope", "job") is None


def test_an_id_that_no_repo_can_have_is_not_found(place: Place) -> None:
    for repo_id in ("../../etc", "a/b/c", "/etc", "a/../b", ""):
        with pytest.raises(RepoNotFound):
            place.hub.check_read(repo_id)


@pytest.mark.parametrize("revision", ["v9", "0" * 40, "refs/pr/7", "a/../../b"])
def test_a_missing_revision_is_named(place: Place, model: Path, revision: str) -> None:
    place.add("acme/base", model)
    place.hub.check_read("acme/base")
    with pytest.raises(RevisionNotFound, match="acme/base"):
        place.hub.resolve(RepoRef(repo_id="acme/base", revision=revision))


def test_publishing_creates_the_repo_with_one_commit(place: Place, result: Path) -> None:
    place.hub.check_write("acme/out")
    published = publish(place.hub, result, "1")
    assert published.pull_request is None
    head = place.hub.get_latest("acme/out")
    assert head is not None
    assert head.sha == published.commit
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= head.files.keys()
    assert place.hub.fetch(head, "adapter_model.safetensors").read_bytes() == b"tensors"
    place.hub.check_read("acme/out")
    place.hub.check_write("acme/out")


def test_a_commit_stands_on_its_parent_and_keeps_its_files(place: Place, result: Path) -> None:
    first = publish(place.hub, result, "1")
    (result / "README.md").write_text("---\nlibrary_name: peft\n---\n# again\n")
    (result / "adapter_config.json").unlink()
    second = publish(place.hub, result, "2", first.commit)
    head = place.hub.get_latest("acme/out")
    assert head is not None
    assert head.sha == second.commit != first.commit
    assert "adapter_config.json" in head.files
    assert "again" in place.hub.fetch(head, "README.md").read_text()
    old = place.hub.resolve(RepoRef(repo_id="acme/out", revision=first.commit))
    assert "moved" in place.hub.fetch(old, "README.md").read_text()


def test_a_parent_that_moved_is_refused_and_changes_nothing(place: Place, result: Path) -> None:
    first = publish(place.hub, result, "1")
    (result / "new.txt").write_text("new")
    second = publish(place.hub, result, "2", first.commit)
    for parent in (first.commit, None):
        (result / "newer.txt").write_text("newer")
        with pytest.raises(ParentMoved) as caught:
            publish(place.hub, result, "3", parent)
        assert caught.value.retryable
    head = place.hub.get_latest("acme/out")
    assert head is not None
    assert head.sha == second.commit
    assert place.hub.find_commit("acme/out", "Rebase-Job: 3") is None


def test_a_job_finds_its_own_commit_by_its_marker(place: Place, result: Path) -> None:
    assert place.hub.find_commit("acme/out", "Rebase-Job: 1") is None
    first = publish(place.hub, result, "1")
    (result / "new.txt").write_text("new")
    publish(place.hub, result, "2", first.commit)
    assert place.hub.find_commit("acme/out", "Rebase-Job: 1") == first
    assert place.hub.find_commit("acme/out", "Rebase-Job: 3") is None


def test_a_pull_request_leaves_main_alone_and_is_found_by_its_marker(place: Place, result: Path) -> None:
    first = publish(place.hub, result, "1")
    (result / "new.txt").write_text("new")
    proposed = [publish(place.hub, result, job, first.commit, create_pr=True) for job in ("2", "3")]
    assert proposed[0].pull_request
    assert proposed[0].pull_request != proposed[1].pull_request
    head = place.hub.get_latest("acme/out")
    assert head is not None
    assert head.sha == first.commit
    assert place.hub.find_commit("acme/out", "Rebase-Job: 3") == proposed[1]
    pinned = place.hub.resolve(RepoRef(repo_id="acme/out", revision="refs/pr/1"))
    assert pinned.sha == proposed[0].commit
    assert place.hub.fetch(pinned, "new.txt").read_text() == "new"


def test_an_output_without_owner_is_forbidden(place: Place) -> None:
    with pytest.raises(OutputForbidden, match="has no owner"):
        place.hub.check_write("out")


def test_a_default_output_that_is_too_long_asks_for_a_name(place: Place) -> None:
    assert place.hub.make_output_name("acme/a--b") in ("acme/a--b", "acme/a-b")
    with pytest.raises(RequestInvalid, match="96 characters") as caught:
        place.hub.make_output_name("acme/" + "a" * 60 + "--" + "b" * 60)
    assert caught.value.pointer == "/output/repo_id"
