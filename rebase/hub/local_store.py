"""One managed repo of the local hub: its branches, its history, and writing commits."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rebase.errors import FileMissing, HubUnavailable, ParentMoved, RevisionNotFound, UnsafeFile
from rebase.hub.content_hash import (
    SHA_PATTERN,
    FileRecord,
    build_commit_record,
    compute_commit_sha,
    hash_file,
)
from rebase.hub.files import list_files, write_errors

_BRANCH_PATTERN = re.compile(r"^[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*$", re.ASCII)
_INCOMING_PREFIX = ".incoming-"
STORE_FOLDERS = frozenset({"refs", "commits", "revisions"})  # of a repo that the hub manages


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit in a repo's history."""

    sha: str
    parent: str | None
    message: str
    files: Mapping[str, FileRecord]


class RepoStore:
    """The folder of one repo. Reads take no lock: whatever a branch points to is complete and immutable."""

    def __init__(self, folder: Path, repo_id: str) -> None:
        self._folder = folder
        self.repo_id = repo_id

    def exists(self) -> bool:
        """Whether this folder is managed by the hub, even if it has no commits yet."""
        return (self._folder / "refs").is_dir()

    def get_revision_folder(self, sha: str) -> Path:
        """The folder with a commit's files."""
        return self._folder / "revisions" / sha

    def get_file(self, sha: str, path: str) -> Path:
        """One file of a commit. Raises UnsafeFile for a link that leads out of the repo, FileMissing."""
        file = self.get_revision_folder(sha) / path
        if not file.resolve().is_relative_to(self.get_revision_folder(sha).resolve()):
            raise UnsafeFile(f"'{path}' in {self.repo_id} is a link to a file outside the repo.")
        if not file.is_file():
            raise FileMissing(f"'{path}' is missing from {self.repo_id} at {sha}.")
        return file

    def find_sha(self, revision: str) -> str | None:
        """The sha that a branch (`main`, `refs/heads/main`, `refs/pr/1`) or full sha resolves to, or None."""
        if SHA_PATTERN.match(revision):
            return revision if (self._folder / "commits" / f"{revision}.json").is_file() else None
        branch = revision.removeprefix("refs/").removeprefix("heads/")
        if not _BRANCH_PATTERN.match(branch) or ".." in branch:
            return None
        try:
            sha = (self._folder / "refs" / branch).read_text().strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as exc:
            raise HubUnavailable(f"Branch '{branch}' of {self.repo_id} cannot be read.") from exc
        if not SHA_PATTERN.match(sha):
            raise HubUnavailable(f"Branch '{branch}' of {self.repo_id} does not name a commit.")
        return sha

    def list_branches(self) -> list[tuple[str, str]]:
        """(name, sha) of `main`, then of every pull request by number."""
        numbers = sorted(int(p.name) for p in (self._folder / "refs" / "pr").glob("*") if p.name.isdecimal())
        names = ["main", *(f"refs/pr/{number}" for number in numbers)]
        return [(name, sha) for name in names if (sha := self.find_sha(name)) is not None]

    def read_commit(self, sha: str) -> Commit:
        """Read a commit's record. Raises RevisionNotFound."""
        try:
            raw = json.loads((self._folder / "commits" / f"{sha}.json").read_text())
            files = {path: FileRecord(file["size"], file["sha256"]) for path, file in raw["files"].items()}
            return Commit(sha, raw["parent"], raw["message"], files)
        except FileNotFoundError as exc:
            raise RevisionNotFound(f"{self.repo_id} has no commit {sha}.") from exc
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise HubUnavailable(f"The record of commit {sha} of {self.repo_id} cannot be read.") from exc

    def iter_history(self, sha: str) -> Iterator[Commit]:
        """A commit and its ancestors, newest first."""
        next_sha: str | None = sha
        while next_sha is not None:
            commit = self.read_commit(next_sha)
            yield commit
            next_sha = commit.parent

    def commit(self, source: Path, *, message: str, parent: str | None, create_pr: bool) -> tuple[str, str]:
        """Commit every file of `source` on top of `parent`; returns (sha, branch).

        Raises ParentMoved if main is not at `parent`, DiskFull.
        """
        with write_errors(self.repo_id), self._lock_for_writing():
            latest = self.find_sha("main")
            if latest != parent:
                raise ParentMoved(
                    f"{self.repo_id} has changed: its main branch is at {latest or 'no commit'}, "
                    f"not at {parent or 'no commit'}.",
                    hint="Check what was added there, then convert again.",
                )
            branch = self._get_next_pull_request() if create_pr else "main"
            incoming = Path(tempfile.mkdtemp(prefix=_INCOMING_PREFIX, dir=self._folder))
            try:
                files = self._build_tree(source, parent, incoming / "files")
                sha = compute_commit_sha(parent, message, files)
                self._install_commit(
                    incoming, sha, json.dumps(build_commit_record(parent, message, files), indent=1)
                )
                self._update_branch(incoming, branch, sha)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        return sha, branch

    @contextmanager
    def _lock_for_writing(self) -> Iterator[None]:
        """Allow one writer per repo; removes leftovers of crashed writers."""
        for name in ("refs", "commits", "revisions"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, even by a crash
            for leftover in self._folder.glob(f"{_INCOMING_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def _build_tree(self, source: Path, parent: str | None, into: Path) -> dict[str, FileRecord]:
        """Build the new tree in `into`: hard links to the parent's files, synced copies of the new ones."""
        into.mkdir()
        new_files = list_files(source, link_root=source.resolve(), name="the output")
        files: dict[str, FileRecord] = {}
        if parent is not None:
            inherited = {
                path: file for path, file in self.read_commit(parent).files.items() if path not in new_files
            }
            for path in inherited:
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                _link(self.get_file(parent, path), into / path)
            files.update(inherited)
        for path in new_files:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, into / path)
            (into / path).chmod(0o444)
            _fsync(into / path)
            files[path] = FileRecord((into / path).stat().st_size, hash_file(into / path))
        for folder, _, _ in os.walk(into):
            _fsync(Path(folder))
        return files

    def _install_commit(self, incoming: Path, sha: str, record: str) -> None:
        """Rename the tree, then the record, into place. A tree left there by a crash is complete."""
        if not self.get_revision_folder(sha).exists():
            (incoming / "files").rename(self.get_revision_folder(sha))
            _fsync(self._folder / "revisions")
        _write_atomically(incoming / "record", record, self._folder / "commits" / f"{sha}.json")

    def _update_branch(self, incoming: Path, branch: str, sha: str) -> None:
        target = self._folder / "refs" / branch.removeprefix("refs/")
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(incoming / "branch", f"{sha}\n", target)

    def _get_next_pull_request(self) -> str:
        numbers = [int(name.rpartition("/")[2]) for name, _ in self.list_branches() if name != "main"]
        return f"refs/pr/{max(numbers, default=0) + 1}"


def _link(existing: Path, new: Path) -> None:
    """Hard-link an immutable file; copy it on file systems without hard links."""
    try:
        os.link(existing, new)
    except OSError:
        shutil.copyfile(existing, new)
        _fsync(new)


def _write_atomically(temporary: Path, text: str, target: Path) -> None:
    temporary.write_text(text)
    _fsync(temporary)
    temporary.replace(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
