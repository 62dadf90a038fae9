"""The `Hub` interface (resolve, read, publish) and its value types. Implementations: remote, local folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from rebase.errors import FileMissing, RebaseError, RepoNotFound, RequestInvalid
from rebase.schemas.references import RepoKind
from rebase.schemas.repos import MAX_REPO_ID, RepoRef, check_repo_id


def pin(hub: Hub, ref: RepoRef, pointer: str) -> PinnedRepo:
    """Check access, then resolve. Errors get `pointer` to the request's field."""
    try:
        hub.check_read(ref.repo_id)
        return hub.resolve(ref)
    except RebaseError as exc:
        exc.pointer = exc.pointer or pointer
        raise


_MAX_LISTED_FOLDERS = 8


@dataclass(frozen=True, slots=True)
class HubRevision:
    """A repo's id, its commit, and the folder inside it where that is not the top one."""

    repo_id: str
    sha: str
    subfolder: str | None = None

    def __str__(self) -> str:
        return (
            f"{self.repo_id}@{self.sha}:{self.subfolder}" if self.subfolder else f"{self.repo_id}@{self.sha}"
        )

    @property
    def identity(self) -> str:
        """The commit, and the subfolder if there is one: two folders of one commit are different models."""
        return f"{self.sha}:{self.subfolder}" if self.subfolder else self.sha


@dataclass(frozen=True, slots=True)
class PinnedRepo:
    """A repo, or one folder of it, at one immutable revision.

    `files`: path → size in bytes, relative to `subfolder`. `origin`: for the folder of a download cache, what
    it holds. `root`: the whole repo, for a subfolder.
    """

    repo_id: str
    sha: str  # 40 lowercase hex digits
    files: dict[str, int]
    kind: RepoKind = "model"
    subfolder: str | None = None
    origin: HubRevision | None = None
    root: PinnedRepo | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.public)

    @property
    def public(self) -> HubRevision:
        """The names under which others find it. For a plain folder: its path and the hash of its content."""
        return self.origin or HubRevision(self.repo_id, self.sha, self.subfolder)

    @property
    def identity(self) -> str:
        """What distinguishes its content from that of other revisions and folders of the same repo id."""
        return HubRevision(self.repo_id, self.sha, self.subfolder).identity

    def enter(self, subfolder: str | None) -> PinnedRepo:
        """One folder of the repo, read as if it were a repo itself. Raises FileMissing if there is none."""
        if subfolder is None:
            return self
        prefix = f"{subfolder}/"
        files = {
            path.removeprefix(prefix): size for path, size in self.files.items() if path.startswith(prefix)
        }
        if not files:
            folders = sorted({path.rpartition("/")[0] for path in self.files} - {""})
            listed = ", ".join(folders[:_MAX_LISTED_FOLDERS])
            raise FileMissing(
                f"{self} has no folder '{subfolder}'.",
                hint=f"It has {listed}." if folders else "It has no folders; leave the subfolder out.",
            )
        origin = self.origin
        if origin is not None:
            origin = replace(
                origin, subfolder=f"{origin.subfolder}/{subfolder}" if origin.subfolder else subfolder
            )
        return replace(self, files=files, subfolder=subfolder, origin=origin, root=self)

    def get_full_path(self, path: str) -> str:
        """A file's path from the repo's top folder."""
        return f"{self.subfolder}/{path}" if self.subfolder else path


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """A model's metadata on its hub, at one commit."""

    repo: PinnedRepo
    created_at: datetime | None
    tags: tuple[str, ...]
    licenses: tuple[str, ...]  # `license` and `license_name` from its model card
    model_digest: str  # covers weights, configs and tokenizer, but not cards and pictures


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row in the list of an owner's models."""

    repo_id: str
    sha: str
    created_at: datetime
    modified_at: datetime


def is_folder(repo_id: str) -> bool:
    """Whether the id is a local folder: an absolute path, which is never a legal repo id. A folder has no
    revisions; its sha is a hash of its content."""
    return repo_id.startswith("/")


@dataclass(frozen=True, slots=True)
class Published:
    """A published commit and where to find it."""

    repo_id: str
    commit: str
    url: str  # a web address for the Hub, a folder path for the local hub
    pull_request: str | None = None


class ByteSource(Protocol):
    """Random access to one immutable file: a local file, or HTTP range requests."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises UnsafeFile if the file is shorter, HubUnavailable on network errors.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable buffer from `offset` without an extra copy. Raises as `read` does."""


class Hub(Protocol):
    """A model hub. Methods raise only types of `rebase.errors`, usually subclasses of `HubError`.

    Adapters and bases are repos of kind `model`; datasets are read-only.
    """

    def with_token(self, token: str | None) -> Hub:
        """The same hub, using only this token; None: no token."""

    def check_read(self, repo_id: str, *, kind: RepoKind = "model") -> None:
        """Check that our token can read this repo now. Called once per repo and job, before any cache use."""

    def resolve(self, ref: RepoRef, *, kind: RepoKind = "model") -> PinnedRepo:
        """Pin a ref to a commit sha and list the files of its folder. Raises FileMissing for a subfolder that
        is not there."""

    def get_info(self, repo_id: str) -> RepoInfo:
        """The model at `main` with its card's metadata. Raises as `resolve` does."""

    def list_models(self, owner: str) -> Iterator[ListedModel]:
        """An owner's models that our token can see, most recently modified first; empty if the owner does not
        exist."""

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """Path to a local, read-only copy of a file of the repo (cached by content). Raises FileMissing."""

    def open(self, repo: PinnedRepo, path: str, *, expected_bytes: int | None = None) -> ByteSource:
        """Random access to a file. `expected_bytes` estimates how many bytes will be read: if less than half
        of the file, it is read with HTTP range requests instead of downloaded."""

    def make_output_name(self, default_name: str) -> str:
        """The default output name, adapted to this hub's rules (the Hub forbids '--' in names)."""

    def check_write(self, repo_id: str, *, create_pr: bool = False) -> None:
        """Check that we can write to or create the repo, or for a pull request, read it. Raises
        OutputForbidden. Called before expensive work.
        """

    def get_latest(self, repo_id: str) -> PinnedRepo | None:
        """The repo at the head of `main`, or None if it does not exist or has no commit."""

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """A commit on main or a pull request whose message contains `marker`, so no job commits twice."""

    def publish(
        self,
        repo_id: str,
        folder: Path,
        *,
        message: str,
        parent: str | None,
        private: bool,
        create_pr: bool,
    ) -> Published:
        """Create the repo if needed and add every file of `folder` in ONE commit on top of `parent` (None:
        the repo must be new or contain only its initial commit). Raises ParentMoved if main has moved."""


def validate_repo_id(repo_id: str) -> str:
    """`repo_id` itself. Raises RepoNotFound if no repo can have that name."""
    try:
        return check_repo_id(repo_id)
    except ValueError as exc:
        raise RepoNotFound(f"'{repo_id}' is not a repo id such as 'owner/name'.") from exc


def is_repo_id(text: str) -> bool:
    """Whether the text is a legal repo id."""
    try:
        check_repo_id(text)
    except ValueError:
        return False
    return True


def validate_output_name(name: str) -> str:
    """`name` itself if it is a legal repo id of at most 96 characters; else RequestInvalid about `output`."""
    try:
        return check_repo_id(name)
    except ValueError as exc:
        length = f"longer than {MAX_REPO_ID} characters"
        problem = length if len(name) > MAX_REPO_ID else "not a valid repo id"
        raise RequestInvalid(
            f"The default output name '{name}' is {problem}.",
            hint="Set output.repo_id.",
            pointer="/output/repo_id",
        ) from exc
