"""Folders named on the command line, and those of the Hub's download cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from rebase.errors import FileMissing, RequestInvalid, RevisionNotFound
from rebase.hub.aliases import AliasedHub, FolderAliases
from rebase.hub.base import PinnedRepo
from rebase.hub.folder_names import find_origin
from rebase.hub.local import LocalHub
from rebase.schemas.repos import RepoRef, parse_repo

SHA = "0123456789abcdef" * 2 + "01234567"


def pin(tmp_path: Path, text: str) -> PinnedRepo:
    """What a reference on the command line is read as."""
    hub, ref = read(tmp_path, text)
    return hub.resolve(ref)


def read(tmp_path: Path, text: str) -> tuple[AliasedHub, RepoRef]:
    aliases = FolderAliases()
    ref = RepoRef.model_validate(parse_repo(aliases.to_reference(text), field="adapter"))
    return AliasedHub(LocalHub(tmp_path / "hub"), aliases.folders, tmp_path / "hashes"), ref


def make_snapshot(cache: Path) -> Path:
    """The download cache's layout of acme/x, its files links to blobs."""
    repo = cache / "models--acme--x"
    snapshot = repo / "snapshots" / SHA
    for name, text in {"config.json": "{}", "sql/adapter_config.json": "{}"}.items():
        blob = repo / "blobs" / name.replace("/", "-")
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(text)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(SHA)
    return snapshot


@pytest.mark.parametrize("name", ["my:run", "me@home", "a@v1:b"])
def test_a_folder_is_found_whatever_its_name_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text("{}")
    assert pin(tmp_path, str(tmp_path / name)).files == {"config.json": 2}


def test_a_folder_of_a_folder_may_be_written_as_in_a_repo(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-500").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-500" / "adapter_config.json").write_text("{}")
    assert set(pin(tmp_path, f"{tmp_path}/run:checkpoint-500").files) == {"adapter_config.json"}
    with pytest.raises(RequestInvalid, match="There is no folder"):
        pin(tmp_path, f"{tmp_path}/run:checkpoint-900")


def test_a_reference_that_is_neither_says_so_with_its_cause(tmp_path: Path) -> None:
    for text, cause in (
        ("no/such/folder", "it is not a Hub repo id"),
        ("acme/x:", "without a subfolder"),
        ("https://github.com/acme/x", "github.com"),
    ):
        with pytest.raises(RequestInvalid, match=cause):
            FolderAliases().to_reference(text)


def test_a_cache_snapshot_is_read_through_its_links_and_known_by_repo_and_commit(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    hub, ref = read(tmp_path, str(snapshot))
    pinned = hub.resolve(ref)
    assert str(pinned) == f"acme/x@{SHA}"
    assert hub.fetch(pinned, "config.json").read_text() == "{}"
    assert hub.resolve(RepoRef(repo_id=ref.repo_id, revision=SHA)) == pinned
    with pytest.raises(RevisionNotFound):
        hub.resolve(RepoRef(repo_id=ref.repo_id, revision="f" * 40))


def test_the_folder_of_a_repo_in_the_cache_is_its_snapshot_of_main(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    assert pin(tmp_path, str(snapshot.parents[1])) == pin(tmp_path, str(snapshot))


def test_a_folder_inside_a_snapshot_is_known_too(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path / "cache")
    for text in (f"{snapshot}/sql", f"{snapshot}:sql"):
        assert str(pin(tmp_path, text)) == f"acme/x@{SHA}:sql"
    (snapshot / "sql" / "adapter_config.json").unlink()
    with pytest.raises(FileMissing, match="no folder 'sql'"):
        pin(tmp_path, str(snapshot)).enter("sql")


@pytest.mark.parametrize(
    "folder",
    [
        "/models/llama",
        f"/cache/models--acme--x/snapshots/{SHA[:-1]}",
        f"/cache/datasets--acme--x/snapshots/{SHA}",
        f"/cache/models--a--b--c/snapshots/{SHA}",
    ],
)
def test_any_other_folder_has_no_origin(folder: str) -> None:
    assert find_origin(folder) is None
