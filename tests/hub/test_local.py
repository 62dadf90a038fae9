"""The local hub folder: content-hashed, atomic, and closed to whatever lies outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rebase.errors import (
    FileMissing,
    HubUnavailable,
    OutputForbidden,
    ParentMoved,
    RepoNotFound,
    RevisionNotFound,
    UnsafeFile,
)
from rebase.hub.content_hash import HashCache
from rebase.hub.local import LocalHub
from rebase.hub.plain_folder import PlainFolder
from rebase.schemas.repos import RepoRef

ROOT = Path(__file__).parents[2]


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def commit(hub: LocalHub, folder: Path, message: str = "one", parent: str | None = None) -> str:
    return hub.publish(
        "acme/out", folder, message=message, parent=parent, private=True, create_pr=False
    ).commit


def accident(*arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "support.hub_faults", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_history_has_the_same_names_everywhere(tmp_path: Path) -> None:
    names = []
    for place in ("one", "two"):
        hub = LocalHub(tmp_path / place)
        first = commit(hub, fill(tmp_path / "a", x="1", y="2"))
        names.append((first, commit(hub, fill(tmp_path / "b", x="3"), "two", first)))
    assert names[0] == names[1]


def test_another_message_parent_or_content_is_another_name(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", x="1")
    base = commit(LocalHub(tmp_path / "one"), folder)
    assert commit(LocalHub(tmp_path / "two"), folder, "other") != base
    assert commit(LocalHub(tmp_path / "three"), fill(tmp_path / "b", x="2")) != base
    assert commit(LocalHub(tmp_path / "one"), folder, "one", base) != base


def test_a_revision_is_a_folder_that_can_be_read_as_it_lies(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path / "hub")
    folder = fill(tmp_path / "a", x="1")
    published = hub.publish("acme/out", folder, message="m", parent=None, private=True, create_pr=False)
    assert (Path(published.url) / "x").read_text() == "1"
    assert not os.access(Path(published.url) / "x", os.W_OK) or os.geteuid() == 0
    assert (Path(published.url) / "x").stat().st_mode & 0o222 == 0


def test_a_crash_at_any_step_of_a_commit_leaves_a_readable_repo(tmp_path: Path) -> None:
    folder = fill(tmp_path / "a", one="1" * 5000, two="2")
    seen = json.loads(accident("crashes", str(tmp_path), str(folder)))
    assert seen["steps"] > 15
    assert seen["old"] >= 15  # until the branch moves
    assert seen["new"] >= 1


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, existing: bool) -> None:
    hub = LocalHub(tmp_path / "hub")
    if existing:
        commit(hub, fill(tmp_path / "old", x="1"))
    folder = fill(tmp_path / "new", large="x" * 5000)
    assert accident("full", str(tmp_path / "hub"), str(folder)).split() == ["disk_full", "True", "True"]


def test_of_many_writers_on_one_parent_one_wins(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path / "hub")
    first = commit(hub, fill(tmp_path / "a", x="0"))
    folders = [fill(tmp_path / f"w{number}", x=str(number)) for number in range(6)]
    outcomes: list[str] = []

    def write(folder: Path) -> None:
        try:
            outcomes.append(commit(LocalHub(tmp_path / "hub"), folder, folder.name, first))
        except ParentMoved:
            outcomes.append("moved")

    threads = [threading.Thread(target=write, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("moved") == 5
    head = hub.get_latest("acme/out")
    assert head is not None
    assert head.sha in outcomes


def test_a_plain_folder_is_served_at_a_revision_made_of_its_content(tmp_path: Path) -> None:
    model = fill(tmp_path / "hub" / "acme" / "base", **{"config.json": "{}", ".DS_Store": "x"})
    hub = LocalHub(tmp_path / "hub")
    pinned = hub.resolve(RepoRef(repo_id="acme/base"))
    assert set(pinned.files) == {"config.json"}
    fill(model, **{"config.json": "{ }"})
    changed = hub.resolve(RepoRef(repo_id="acme/base"))
    assert changed.sha != pinned.sha
    with pytest.raises(RevisionNotFound, match="changed while"):
        hub.fetch(pinned, "config.json")
    with pytest.raises(RevisionNotFound, match="plain folder"):
        hub.resolve(RepoRef(repo_id="acme/base", revision=pinned.sha))


def test_a_repo_without_owner_is_served_when_it_holds_files(tmp_path: Path) -> None:
    fill(tmp_path / "hub" / "gpt2", **{"config.json": "{}"})
    fill(tmp_path / "hub" / "acme" / "base", **{"config.json": "{}"})
    hub = LocalHub(tmp_path / "hub")
    assert hub.resolve(RepoRef(repo_id="gpt2")).files == {"config.json": 2}
    with pytest.raises(RepoNotFound):
        hub.check_read("acme")


def test_a_plain_folder_is_never_written_to(tmp_path: Path) -> None:
    fill(tmp_path / "hub" / "acme" / "out", **{"config.json": "{}"})
    hub = LocalHub(tmp_path / "hub")
    with pytest.raises(OutputForbidden, match="plain folder"):
        hub.check_write("acme/out")
    with pytest.raises(OutputForbidden):
        commit(hub, fill(tmp_path / "a", x="1"))
    assert (tmp_path / "hub" / "acme" / "out" / "config.json").read_text() == "{}"


def test_hashes_are_remembered_between_processes_until_the_file_changes(tmp_path: Path) -> None:
    file = fill(tmp_path / "m", w="1" * 100) / "w"
    first = HashCache(tmp_path / "hashes").get_sha256(file, file.stat())
    entry = next((tmp_path / "hashes").iterdir())
    stamp = entry.read_text().split()[0]
    entry.write_text(f"{stamp} {'f' * 64}")
    assert (
        HashCache(tmp_path / "hashes").get_sha256(file, file.stat()) == "f" * 64
    )  # believed, so it was not hashed
    entry.write_text("rubbish")
    assert HashCache(tmp_path / "hashes").get_sha256(file, file.stat()) == first
    file.write_text("2" * 100)
    assert HashCache(tmp_path / "hashes").get_sha256(file, file.stat()) != first


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_root_is_refused(tmp_path: Path, kind: str) -> None:
    secret = fill(tmp_path / "secret", key="k")
    model = fill(tmp_path / "hub" / "acme" / "base", **{"config.json": "{}"})
    (model / "link").symlink_to(secret / "key" if kind == "file" else secret)
    with pytest.raises(UnsafeFile, match="'link' in acme/base is a link to a file outside"):
        LocalHub(tmp_path / "hub").resolve(RepoRef(repo_id="acme/base"))


def test_a_repo_that_is_a_link_out_of_the_root_does_not_exist(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", **{"config.json": "{}"})
    (tmp_path / "hub" / "acme").mkdir(parents=True)
    (tmp_path / "hub" / "acme" / "base").symlink_to(outside)
    with pytest.raises(RepoNotFound):
        LocalHub(tmp_path / "hub").check_read("acme/base")


def test_a_link_smuggled_into_a_revision_is_refused(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path / "hub")
    commit(hub, fill(tmp_path / "a", x="1"))
    head = hub.get_latest("acme/out")
    assert head is not None
    file = hub.fetch(head, "x")
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(UnsafeFile, match="a link to a file outside"):
        hub.fetch(head, "x")
    file.unlink()
    with pytest.raises(FileMissing, match="is missing"):
        hub.fetch(head, "x")


def test_links_between_repos_of_one_root_are_followed(tmp_path: Path) -> None:
    shared = fill(tmp_path / "hub" / "acme" / "one", **{"config.json": "{}"})
    (tmp_path / "hub" / "acme" / "two").mkdir()
    (tmp_path / "hub" / "acme" / "two" / "config.json").symlink_to(shared / "config.json")
    hub = LocalHub(tmp_path / "hub")
    pinned = hub.resolve(RepoRef(repo_id="acme/two"))
    assert hub.fetch(pinned, "config.json").read_text() == "{}"


def test_something_that_is_no_file_is_refused(tmp_path: Path) -> None:
    model = fill(tmp_path / "m", **{"config.json": "{}"})
    os.mkfifo(model / "pipe")
    with pytest.raises(UnsafeFile, match="'pipe' in m is not a regular file"):
        PlainFolder(model, "m", HashCache()).pin()


def test_records_that_somebody_broke_are_told_apart_from_missing_ones(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path / "hub")
    sha = commit(hub, fill(tmp_path / "a", x="1"))
    repo = tmp_path / "hub" / "acme" / "out"
    (repo / "commits" / f"{sha}.json").write_text("{")
    with pytest.raises(HubUnavailable, match="cannot be read"):
        hub.get_latest("acme/out")
    (repo / "refs" / "main").write_text("rubbish")
    with pytest.raises(HubUnavailable, match="does not name a commit"):
        hub.get_latest("acme/out")


def test_a_place_that_cannot_be_written_is_forbidden_before_the_work(tmp_path: Path) -> None:
    fill(tmp_path / "hub", acme="a file where the owner's folder should be")
    with pytest.raises(OutputForbidden, match="no permission to write to acme/out"):
        LocalHub(tmp_path / "hub").check_write("acme/out")
