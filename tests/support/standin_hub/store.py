"""What the stand-in keeps: blobs by hash, and per repo its commits, branches and pull requests. All of it on
disk.

    <root>/blobs/<sha256>           content (a link to the seeded file, or the uploaded bytes)
    <root>/repos/<owner>/<name>.json

No id depends on the clock: commits are dated by their number, so that the same calls give the same ids. Only
when a repo was created, and changed last, is told by the clock.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".model", ".gguf")
LFS_BYTES = 10 * 2**20
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


EPOCH = "1970-01-01T00:00:00.000Z"
# Told of every change: the repo, the event, and the refs that moved.
Listener = Callable[["Repo", dict[str, str], "list[dict[str, Any]] | None"], None]


@dataclass(frozen=True)
class Token:
    """Whose token it is, what it may do, and in which organisations (name → role)."""

    user: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)

    def owns(self, owner: str) -> bool:
        """May it read what that owner keeps private?"""
        return owner == self.user or owner in self.orgs

    def writes(self, owner: str) -> bool:
        """May it write there?"""
        mine = owner == self.user or self.orgs.get(owner) in ("write", "admin", "contributor")
        return self.role == "write" and mine


@dataclass
class File:
    """One file of a commit. `oid` is git's name of a small file's content."""

    sha256: str
    size: int
    lfs: bool
    oid: str


@dataclass
class Commit:
    """One commit, with its whole tree."""

    sha: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    """One repo. A dataset's id begins with 'datasets/'."""

    id: str
    private: bool = False
    gated: bool = False
    disabled: bool = False
    granted: list[str] = field(default_factory=list)  # users with access to a gated repo
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    created_at: str = EPOCH
    modified_at: str = EPOCH

    @property
    def owner(self) -> str:
        """The part before the slash."""
        return self.id.removeprefix("datasets/").partition("/")[0]

    def sha_of(self, revision: str) -> str | None:
        """The commit that a branch, a pull request's ref or a sha names."""
        revision = revision.removeprefix("refs/heads/")
        return revision if revision in self.commits else self.refs.get(revision)

    def history(self, sha: str) -> list[Commit]:
        """Newest first."""
        found, following = [], sha
        while following:
            found.append(self.commits[following])
            following = found[-1].parent or ""
        return found

    def pull_requests(self) -> list[int]:
        """Their numbers, newest first."""
        return sorted(
            (int(ref.rpartition("/")[2]) for ref in self.refs if ref.startswith("refs/pr/")), reverse=True
        )


class Store:
    """Every repo and blob. One lock: the stand-in is for tests, not for load."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listener: Listener | None = None
        self.lock = threading.RLock()
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (root / "repos").mkdir(exist_ok=True)
        self.repos = {repo.id: repo for repo in map(_load, sorted((root / "repos").rglob("*.json")))}

    def create(self, repo_id: str, *, private: bool = False, gated: bool = False) -> Repo:
        """A new repo with the initial commit that the Hub makes."""
        with self.lock:
            repo = self.repos[repo_id] = Repo(repo_id, private, gated, created_at=_now())
            first = {".gitattributes": self.put(GITATTRIBUTES)}
            self.commit(repo, "main", "initial commit", "", first, tell=False)
            self._tell(repo, "create", "repo", None)
            return repo

    def seed(self, repo_id: str, folder: Path, *, private: bool = False, gated: bool = False) -> str:
        """Commit every file of a folder, without copying it. Returns the commit's sha."""
        with self.lock:
            repo = self.repos.get(repo_id) or self.create(repo_id, private=private, gated=gated)
            repo.private, repo.gated = private, gated
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {path.relative_to(folder).as_posix(): self._link(path) for path in paths}
            return self.commit(repo, "main", f"Add {len(files)} files", "", files)

    def put(self, content: bytes) -> tuple[str, int]:
        """Store bytes; returns (sha256, size)."""
        digest = hashlib.sha256(content).hexdigest()
        _write(self.blob(digest), content)
        return digest, len(content)

    def blob(self, sha256: str) -> Path:
        """Where a blob lies, or would lie."""
        return self.root / "blobs" / sha256

    def commit(
        self,
        repo: Repo,
        ref: str,
        title: str,
        message: str,
        add: dict[str, tuple[str, int]],
        delete: set[str] = frozenset(),  # type: ignore[assignment]
        parent: str | None = None,
        tell: bool = True,
    ) -> str:
        """One commit on `ref`, on top of `parent` or of what `ref` points at."""
        with self.lock:
            parent = parent or repo.refs.get(ref)
            files = dict(repo.commits[parent].files) if parent else {}
            files = {path: file for path, file in files.items() if path not in delete}
            files.update({path: self._file(path, *blob) for path, blob in add.items()})
            number = len(repo.commits)
            date = f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.000Z"
            content = {path: asdict(file) for path, file in sorted(files.items())}
            name = json.dumps([repo.id, parent, title, message, date, content])
            sha = hashlib.sha1(name.encode()).hexdigest()
            repo.commits[sha] = Commit(sha, parent, title, message, date, files)
            before = repo.refs.get(ref)
            repo.refs[ref] = sha
            repo.modified_at = _now()
            self.save(repo)
            if tell:
                name = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
                moved = [{"ref": name, "oldSha": before, "newSha": sha}]
                self._tell(repo, "update", "repo.content", moved)
            return sha

    def save(self, repo: Repo) -> None:
        """Write the repo's record, atomically."""
        path = self.root / "repos" / f"{repo.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(asdict(repo), indent=1).encode())

    def _tell(self, repo: Repo, action: str, scope: str, refs: list[dict[str, Any]] | None) -> None:
        if self.listener is not None:
            self.listener(repo, {"action": action, "scope": scope}, refs)

    def _link(self, path: Path) -> tuple[str, int]:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not self.blob(digest).exists():
            self.blob(digest).symlink_to(path.resolve())
        return digest, path.stat().st_size

    def _file(self, path: str, sha256: str, size: int) -> File:
        lfs = path.endswith(LFS_SUFFIXES) or size > LFS_BYTES
        content = pointer(sha256, size) if lfs else self.blob(sha256).read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, size, lfs, oid)


def pointer(sha256: str, size: int) -> bytes:
    """What git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _load(path: Path) -> Repo:
    raw: dict[str, Any] = json.loads(path.read_text())
    for sha, commit in raw["commits"].items():
        files = {name: File(**file) for name, file in commit.pop("files").items()}
        raw["commits"][sha] = Commit(**commit, files=files)
    return Repo(**raw)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
