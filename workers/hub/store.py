"""One managed repo of the local hub: its branches, its history, and how a commit is written."""

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
from workers.hub.content import SHA, FileRecord, commit_json, commit_sha, hash_file
from workers.hub.files import list_files, writing

_BRANCH = re.compile(r"^[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*$", re.ASCII)
_INCOMING = ".incoming-"


@dataclass(frozen=True, slots=True)
class Commit:
    """One entry of a repo's history."""

    sha: str
    parent: str | None
    message: str
    files: Mapping[str, FileRecord]


class RepoStore:
    """The folder of one repo. Reading takes no lock: whatever a branch points at is complete and never
    changes.
    """

    def __init__(self, folder: Path, repo_id: str) -> None:
        self._folder = folder
        self.repo_id = repo_id

    def exists(self) -> bool:
        """Is this folder managed by the hub (even if nothing was committed yet)?"""
        return (self._folder / "refs").is_dir()

    def revision(self, sha: str) -> Path:
        """The folder that holds a commit's files."""
        return self._folder / "revisions" / sha

    def file(self, sha: str, path: str) -> Path:
        """One file of a commit. UnsafeFile when somebody put a link out of the repo in its place."""
        file = self.revision(sha) / path
        if not file.resolve().is_relative_to(self.revision(sha).resolve()):
            raise UnsafeFile(f"'{path}' in {self.repo_id} is a link that leads out of the repo.")
        if not file.is_file():
            raise FileMissing(f"'{path}' has vanished from {self.repo_id} at {sha}.")
        return file

    def sha_of(self, revision: str) -> str | None:
        """The commit that a branch (`main`, `refs/heads/main`, `refs/pr/1`) or a full sha names, or None."""
        if SHA.match(revision):
            return revision if (self._folder / "commits" / f"{revision}.json").is_file() else None
        branch = revision.removeprefix("refs/").removeprefix("heads/")
        if not _BRANCH.match(branch) or ".." in branch:
            return None
        try:
            sha = (self._folder / "refs" / branch).read_text().strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as exc:
            raise HubUnavailable(f"Branch '{branch}' of {self.repo_id} cannot be read.") from exc
        if not SHA.match(sha):
            raise HubUnavailable(f"Branch '{branch}' of {self.repo_id} does not name a commit.")
        return sha

    def branches(self) -> list[tuple[str, str]]:
        """(name, sha): `main` first, then every pull request by number."""
        numbers = sorted(int(p.name) for p in (self._folder / "refs" / "pr").glob("*") if p.name.isdecimal())
        names = ["main", *(f"refs/pr/{number}" for number in numbers)]
        return [(name, sha) for name in names if (sha := self.sha_of(name)) is not None]

    def commit_of(self, sha: str) -> Commit:
        """Read a commit's record."""
        try:
            raw = json.loads((self._folder / "commits" / f"{sha}.json").read_text())
            files = {path: FileRecord(file["size"], file["sha256"]) for path, file in raw["files"].items()}
            return Commit(sha, raw["parent"], raw["message"], files)
        except FileNotFoundError as exc:
            raise RevisionNotFound(f"{self.repo_id} has no commit {sha}.") from exc
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise HubUnavailable(f"The record of commit {sha} of {self.repo_id} cannot be read.") from exc

    def history(self, sha: str) -> Iterator[Commit]:
        """A commit and its ancestors, newest first."""
        following: str | None = sha
        while following is not None:
            commit = self.commit_of(following)
            yield commit
            following = commit.parent

    def commit(self, source: Path, *, message: str, parent: str | None, create_pr: bool) -> tuple[str, str]:
        """Add every file of `source` on top of `parent`; returns (sha, branch). ParentMoved, DiskFull."""
        with writing(self.repo_id), self._locked():
            head = self.sha_of("main")
            if head != parent:
                raise ParentMoved(
                    f"{self.repo_id} has changed: its main branch is at {head or 'no commit'}, "
                    f"not at {parent or 'no commit'}.",
                    hint="Look at what was added there, then convert again.",
                )
            branch = self._next_pull_request() if create_pr else "main"
            incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=self._folder))
            try:
                files = self._gather(source, parent, incoming / "files")
                sha = commit_sha(parent, message, files)
                self._install(incoming, sha, json.dumps(commit_json(parent, message, files), indent=1))
                self._point(incoming, branch, sha)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        return sha, branch

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer per repo; removes what a writer that died has left behind."""
        for name in ("refs", "commits", "revisions"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also by a crash
            for leftover in self._folder.glob(f"{_INCOMING}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def _gather(self, source: Path, parent: str | None, into: Path) -> dict[str, FileRecord]:
        """Lay out the new tree in `into`: the parent's files as hard links, the new ones as synced copies."""
        into.mkdir()
        new = list_files(source, inside=source.resolve(), name="the output")
        files: dict[str, FileRecord] = {}
        if parent is not None:
            kept = {path: file for path, file in self.commit_of(parent).files.items() if path not in new}
            for path in kept:
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                _link(self.file(parent, path), into / path)
            files.update(kept)
        for path in new:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, into / path)
            (into / path).chmod(0o444)
            _sync(into / path)
            files[path] = FileRecord((into / path).stat().st_size, hash_file(into / path))
        for folder, _, _ in os.walk(into):
            _sync(Path(folder))
        return files

    def _install(self, incoming: Path, sha: str, record: str) -> None:
        """Rename the tree, then the record, into place. A tree that a crash left under this name is
        complete.
        """
        if not self.revision(sha).exists():
            (incoming / "files").rename(self.revision(sha))
            _sync(self._folder / "revisions")
        _replace(incoming / "record", record, self._folder / "commits" / f"{sha}.json")

    def _point(self, incoming: Path, branch: str, sha: str) -> None:
        target = self._folder / "refs" / branch.removeprefix("refs/")
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(incoming / "branch", f"{sha}\n", target)

    def _next_pull_request(self) -> str:
        taken = [int(name.rpartition("/")[2]) for name, _ in self.branches() if name != "main"]
        return f"refs/pr/{max(taken, default=0) + 1}"


def _link(existing: Path, new: Path) -> None:
    """A second name for an immutable file; a copy on file systems without hard links."""
    try:
        os.link(existing, new)
    except OSError:
        shutil.copyfile(existing, new)
        _sync(new)


def _replace(temporary: Path, text: str, target: Path) -> None:
    temporary.write_text(text)
    _sync(temporary)
    temporary.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
