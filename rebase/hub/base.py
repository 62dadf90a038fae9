"""The hub as the pipeline sees it: resolve, read, publish. Two implementations: remote, local folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from rebase.errors import RebaseError, RepoNotFound, RequestInvalid
from rebase.schemas.repos import MAX_REPO_ID, RepoRef, check_repo_id


def pin(hub: Hub, ref: RepoRef, pointer: str) -> PinnedRepo:
    """Check access, then resolve. Errors point at the request's field."""
    try:
        hub.check_read(ref.repo_id)
        return hub.resolve(ref)
    except RebaseError as exc:
        exc.pointer = exc.pointer or pointer
        raise


RepoKind = Literal["model", "dataset"]


@dataclass(frozen=True, slots=True)
class PinnedRepo:
    """A repo at one immutable revision."""

    repo_id: str
    sha: str  # 40 lowercase hex digits
    files: dict[str, int]  # path inside the repo → size in bytes
    kind: RepoKind = "model"

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.sha}"


@dataclass(frozen=True, slots=True)
class RepoInfo:
    """A model as its hub describes it, at one commit."""

    repo: PinnedRepo
    created_at: datetime | None
    tags: tuple[str, ...]
    licenses: tuple[str, ...]  # `license` and `license_name` of its card
    model_digest: str  # a digest of all files that a model computes with; cards and pictures are left out


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row of an owner's list."""

    repo_id: str
    sha: str
    created_at: datetime
    modified_at: datetime


def is_folder(repo_id: str) -> bool:
    """A folder of this machine goes by its absolute path, which no repo id can be. It has no revisions; its
    sha is a hash of its content."""
    return repo_id.startswith("/")


@dataclass(frozen=True, slots=True)
class Published:
    """Where a commit landed."""

    repo_id: str
    commit: str
    url: str  # a web address for the Hub, a folder path for the local hub
    pull_request: str | None = None


class ByteSource(Protocol):
    """Random access to one immutable file: a local file, or ranged reads over HTTP."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises UnsafeFile when the file is shorter, HubUnavailable on network trouble.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill a writable buffer of bytes from `offset`, without a second copy. Raises as `read` does."""


class Hub(Protocol):
    """Every call raises errors of the `rebase.errors.HubError` tree and nothing else of its own.

    Adapters and bases are repos of kind `model`; datasets are only ever read.
    """

    def with_token(self, token: str | None) -> Hub:
        """The same hub asked with this token alone; None: without any."""

    def check_read(self, repo_id: str, *, kind: RepoKind = "model") -> None:
        """Does our token read this repo right now? Asked once per repo and job, before any cached byte."""

    def resolve(self, ref: RepoRef, *, kind: RepoKind = "model") -> PinnedRepo:
        """Pin a ref to a commit sha and list its files."""

    def get_info(self, repo_id: str) -> RepoInfo:
        """The model at `main`, with what its card says. Raises as `resolve` does."""

    def list_models(self, owner: str) -> Iterator[ListedModel]:
        """The models of an owner that our token may see, the last changed first. None for an owner that does
        not exist."""

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """A whole file as a local, read-only path (cached by content). FileMissing when absent."""

    def open(self, repo: PinnedRepo, path: str, *, expected_bytes: int | None = None) -> ByteSource:
        """Random access. `wanted` is how many bytes will be read, a guess at best: when more than half of
        the file is saved, reads go over HTTP ranges instead of a whole download."""

    def make_output_name(self, default_name: str) -> str:
        """The contract's default name made legal here (the Hub forbids '--' in names)."""

    def check_write(self, repo_id: str, *, create_pr: bool = False) -> None:
        """Can we write there (or create it)? For a pull request, can we read it? OutputForbidden otherwise.
        Called before expensive work.
        """

    def get_latest(self, repo_id: str) -> PinnedRepo | None:
        """The output repo's main branch now, or None when the repo does not exist or has no commit."""

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """A commit of main (or an open PR) whose message carries `marker`, so that no job commits twice."""

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
        """Create the repo when needed and add every file of `folder` in ONE commit on top of `parent`
        (None: the repo must be new or hold nothing but its initial commit). ParentMoved when it has moved."""


def validate_repo_id(repo_id: str) -> str:
    """`repo_id` itself. RepoNotFound when no repo can have that name."""
    try:
        return check_repo_id(repo_id)
    except ValueError as exc:
        raise RepoNotFound(f"'{repo_id}' is not a repo id such as 'owner/name'.") from exc


def is_repo_id(text: str) -> bool:
    """Can a repo be called so?"""
    try:
        check_repo_id(text)
    except ValueError:
        return False
    return True


def validate_output_name(name: str) -> str:
    """`name` when it is a legal repo id of at most 96 characters; RequestInvalid about `output` otherwise."""
    try:
        return check_repo_id(name)
    except ValueError as exc:
        length = f"longer than {MAX_REPO_ID} characters"
        problem = length if len(name) > MAX_REPO_ID else "not a legal repo id"
        raise RequestInvalid(
            f"The default output name '{name}' is {problem}.",
            hint="Name the output yourself: output.repo_id.",
            pointer="/output/repo_id",
        ) from exc
