"""A hub in a folder: immutable, content-hashed revisions, and branches that move atomically.

    <root>/<owner>/<name>/
        refs/<branch>             text: the sha that the branch points at (`main`; `pr/1` for a pull request)
        commits/<sha>.json        {"parent": sha | null, "message": "…",
                                   "files": {path: {"size": n, "sha256": "…"}}}
        revisions/<sha>/…         the files of that commit, read-only, as PEFT and Transformers expect them
        .lock                     held (fcntl) while a commit is written
        .incoming-…/              a commit being written; what a crash leaves, the next commit removes
    <root>/datasets/<owner>/<name>/      datasets, laid out alike; only read
    <root>/.hashes/               remembered content hashes of plain folders

A commit becomes visible by the last of three atomic renames (revision, commit, branch), each synced before
the next, so a crash at any point leaves a repo that reads as it did before. A folder below the root without
`refs/`, as copied from elsewhere, is served too, read-only, at a revision that is a hash of its content (see
`rebase.hub.plain_folder`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rebase.errors import FileMissing, HubUnavailable, OutputForbidden, RepoNotFound, RevisionNotFound
from rebase.hub.base import (
    ListedModel,
    PinnedRepo,
    Published,
    RepoInfo,
    RepoKind,
    is_repo_id,
    validate_output_name,
    validate_repo_id,
)
from rebase.hub.content_hash import HashCache, compute_model_digest
from rebase.hub.files import FileSource
from rebase.hub.local_store import RepoStore
from rebase.hub.plain_folder import PlainFolder
from rebase.hub.repo_metadata import CARD_FILE, get_licenses, get_tags, read_metadata
from rebase.schemas.repos import RepoRef

_OWNER_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*\Z", re.ASCII)


class LocalHub:
    """The hub port over a folder. There are no tokens: the worker reads and writes all of it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._hashes = HashCache(self._root / ".hashes")

    def with_token(self, token: str | None) -> LocalHub:
        """Itself: a folder knows no tokens."""
        return self

    def check_read(self, repo_id: str, *, kind: RepoKind = "model") -> None:
        """Raise RepoNotFound unless the repo is there."""
        self._find_repo(repo_id, kind)

    def resolve(self, ref: RepoRef, *, kind: RepoKind = "model") -> PinnedRepo:
        """Pin a branch, or check a sha. RepoNotFound, RevisionNotFound."""
        folder = self._find_repo(ref.repo_id, kind)
        if isinstance(folder, PlainFolder):
            return replace(folder.resolve(ref), kind=kind)
        sha = folder.find_sha(ref.revision)
        if sha is None:
            raise RevisionNotFound(
                f"{ref.repo_id} has no revision '{ref.revision}'.",
                hint="Name a branch or a full commit sha of this repo; the default branch is 'main'.",
            )
        return replace(self._pin_commit(folder, sha), kind=kind)

    def get_info(self, repo_id: str) -> RepoInfo:
        """The model at main. It was created when its first commit was written, by that file's time."""
        repo = self.resolve(RepoRef(repo_id=repo_id))
        card = read_metadata(self.fetch(repo, CARD_FILE)) if CARD_FILE in repo.files else {}
        store = RepoStore(self._get_folder(repo_id), repo_id)
        if store.exists():
            hashes = {path: file.sha256 for path, file in store.read_commit(repo.sha).files.items()}
            model_digest = compute_model_digest(hashes)
        else:
            model_digest = repo.sha
        return RepoInfo(repo, self._get_times(repo_id)[0], get_tags(card), get_licenses(card), model_digest)

    def list_models(self, owner: str) -> Iterator[ListedModel]:
        """The owner's folders; those that hold nothing to read are passed over."""
        models = []
        if _OWNER_PATTERN.match(owner):
            for folder in (self._root / owner).glob("[!.]*"):
                repo_id = f"{owner}/{folder.name}"
                latest = self.get_latest(repo_id) if is_repo_id(repo_id) else None
                if latest is not None:
                    models.append(ListedModel(repo_id, latest.sha, *self._get_times(repo_id)))
        yield from sorted(models, key=lambda model: (model.modified_at, model.repo_id), reverse=True)

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """The file inside its revision's folder. FileMissing when the revision does not have it."""
        folder = self._find_repo(repo.repo_id, repo.kind)
        if isinstance(folder, PlainFolder):
            return folder.fetch(repo, path)
        if path not in folder.read_commit(repo.sha).files:
            raise FileMissing(f"{repo.repo_id} has no file '{path}' at {repo.sha}.")
        return folder.get_file(repo.sha, path)

    def open(self, repo: PinnedRepo, path: str, *, expected_bytes: int | None = None) -> FileSource:
        """Random access; `wanted` makes no difference for a local file."""
        return FileSource(self.fetch(repo, path), f"'{path}' of {repo}")

    def make_output_name(self, default_name: str) -> str:
        """The contract's own name, when it is short enough."""
        return validate_output_name(default_name)

    def check_write(self, repo_id: str, *, create_pr: bool = False) -> None:
        """OutputForbidden for a plain folder, an id without owner, and without write access."""
        folder = self._require_writable(repo_id)
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputForbidden(
                f"The worker may not write to {repo_id}.",
                hint="Give the worker's user write access to the local hub folder, or name another output.",
            )

    def get_latest(self, repo_id: str) -> PinnedRepo | None:
        """The repo at `main`, or None."""
        try:
            return self.resolve(RepoRef(repo_id=validate_repo_id(repo_id)))
        except (RepoNotFound, RevisionNotFound):
            return None

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """A commit of main or of a pull request whose message holds `marker`."""
        try:
            folder = self._find_repo(repo_id)
        except RepoNotFound:
            return None
        if isinstance(folder, PlainFolder):
            return None
        for branch, sha in folder.list_branches():
            for commit in folder.iter_history(sha):
                if marker in commit.message:
                    return self._build_published(folder, repo_id, commit.sha, branch)
        return None

    def publish(
        self, repo_id: str, folder: Path, *, message: str, parent: str | None, private: bool, create_pr: bool
    ) -> Published:
        """One commit: the parent's files and those of `folder`. `private` means nothing here."""
        self.check_write(repo_id)
        store = RepoStore(self._get_folder(repo_id), repo_id)
        sha, branch = store.commit(folder, message=message, parent=parent, create_pr=create_pr)
        return self._build_published(store, repo_id, sha, branch)

    def _get_times(self, repo_id: str) -> tuple[datetime, datetime]:
        """(created, last changed), by the times of files."""
        folder = self._get_folder(repo_id)
        paths = [*(folder / "commits").glob("*.json"), folder / "refs" / "main"]
        times = [path.stat().st_mtime for path in paths if path.exists()] or [folder.stat().st_mtime]
        return datetime.fromtimestamp(min(times), UTC), datetime.fromtimestamp(max(times), UTC)

    def _build_published(self, store: RepoStore, repo_id: str, sha: str, branch: str) -> Published:
        pull_request = None if branch == "main" else branch
        return Published(repo_id, sha, str(store.get_revision_folder(sha)), pull_request)

    def _pin_commit(self, store: RepoStore, sha: str) -> PinnedRepo:
        files = {path: file.size for path, file in store.read_commit(sha).files.items()}
        return PinnedRepo(store.repo_id, sha, files)

    def _get_folder(self, repo_id: str, kind: RepoKind = "model") -> Path:
        """Where the repo lies; a link on the way that leads out of the root counts as absent."""
        root = self._root / "datasets" if kind == "dataset" else self._root
        folder = root / validate_repo_id(repo_id)
        if not folder.resolve().is_relative_to(self._root):
            raise RepoNotFound(f"{repo_id} is not in the local hub.")
        return folder

    def _find_repo(self, repo_id: str, kind: RepoKind = "model") -> RepoStore | PlainFolder:
        folder = self._get_folder(repo_id, kind)
        store = RepoStore(folder, repo_id)
        if "/" in repo_id and store.exists():
            return store
        try:
            entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
            # A dataset may have nothing but folders; so has an owner, whose name has no slash.
            if any(entry.is_file() for entry in entries) or (
                entries and kind == "dataset" and "/" in repo_id
            ):
                return PlainFolder(folder, repo_id, self._hashes, link_root=self._root)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise HubUnavailable(f"The folder of {repo_id} cannot be read.") from exc
        raise RepoNotFound(
            f"{repo_id} is not in the local hub.",
            hint=f"Check the spelling; {kind}s lie in the local hub folder as "
            f"{'datasets/' if kind == 'dataset' else ''}owner/name.",
        )

    def _require_writable(self, repo_id: str) -> Path:
        folder = self._get_folder(repo_id)
        if "/" not in repo_id:
            raise OutputForbidden(f"'{repo_id}' names no owner; outputs are called 'owner/name'.")
        try:
            existing: RepoStore | PlainFolder | None = self._find_repo(repo_id)
        except RepoNotFound:
            existing = None
        if isinstance(existing, PlainFolder):
            raise OutputForbidden(
                f"{repo_id} is a plain folder that the local hub only reads.",
                hint="Name another output.",
            )
        return folder
