"""A hub in a local folder: immutable, content-hashed revisions and atomically updated branches.

    <root>/<owner>/<name>/
        refs/<branch>             text: the sha that the branch points at (`main`; `pr/1` for a pull request)
        commits/<sha>.json        {"parent": sha | null, "message": "…",
                                   "files": {path: {"size": n, "sha256": "…"}}}
        revisions/<sha>/…         the files of that commit, read-only, as PEFT and Transformers expect them
        .lock                     held (fcntl) while a commit is written
        .incoming-…/              a commit being written; leftovers of a crash are removed by the next commit
    <root>/datasets/<owner>/<name>/      datasets, with the same layout; read-only
    <root>/.hashes/               cached content hashes of plain folders

A commit becomes visible with the last of three atomic renames (revision, commit, branch), each synced before
the next, so after a crash at any point the repo reads as before. A folder below the root without `refs/`
(copied from elsewhere, say) is also served, read-only, with a hash of its content as revision (see
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
    is_repo_id,
    validate_output_name,
    validate_repo_id,
)
from rebase.hub.content_hash import HashCache, compute_model_digest
from rebase.hub.files import FileSource
from rebase.hub.local_store import STORE_FOLDERS, RepoStore
from rebase.hub.plain_folder import PlainFolder
from rebase.hub.repo_metadata import CARD_FILE, get_licenses, get_tags, read_metadata
from rebase.schemas.references import RepoKind
from rebase.schemas.repos import RepoRef

_OWNER_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*\Z", re.ASCII)


class LocalHub:
    """A `Hub` in a local folder. There are no tokens: the worker can read and write all of it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._hashes = HashCache(self._root / ".hashes")

    def with_token(self, token: str | None) -> LocalHub:
        """Returns itself: a folder has no tokens."""
        return self

    def check_read(self, repo_id: str, *, kind: RepoKind = "model") -> None:
        """Raise RepoNotFound unless the repo exists."""
        self._find_repo(repo_id, kind)

    def resolve(self, ref: RepoRef, *, kind: RepoKind = "model") -> PinnedRepo:
        """Pin a branch, or check a sha. Raises RepoNotFound, RevisionNotFound."""
        folder = self._find_repo(ref.repo_id, kind)
        if isinstance(folder, PlainFolder):
            return replace(folder.resolve(ref), kind=kind)
        sha = folder.find_sha(ref.revision)
        if sha is None:
            raise RevisionNotFound(
                f"{ref.repo_id} has no revision '{ref.revision}'.",
                hint="Use a branch or a full commit sha of this repo; the default branch is 'main'.",
            )
        return replace(self._pin_commit(folder, sha), kind=kind).enter(ref.subfolder)

    def get_info(self, repo_id: str) -> RepoInfo:
        """The model at main. The creation time is the file time of its first commit."""
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
        """The owner's models; folders without a readable repo are skipped."""
        models = []
        if _OWNER_PATTERN.match(owner):
            for folder in (self._root / owner).glob("[!.]*"):
                repo_id = f"{owner}/{folder.name}"
                latest = self.get_latest(repo_id) if is_repo_id(repo_id) else None
                if latest is not None:
                    models.append(ListedModel(repo_id, latest.sha, *self._get_times(repo_id)))
        yield from sorted(models, key=lambda model: (model.modified_at, model.repo_id), reverse=True)

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """The file inside its revision's folder. Raises FileMissing if the revision does not have it."""
        folder = self._find_repo(repo.repo_id, repo.kind)
        if isinstance(folder, PlainFolder):
            return folder.fetch(repo, path)
        full_path = repo.get_full_path(path)
        if full_path not in folder.read_commit(repo.sha).files:
            raise FileMissing(f"{repo.repo_id} has no file '{full_path}' at {repo.sha}.")
        return folder.get_file(repo.sha, full_path)

    def open(self, repo: PinnedRepo, path: str, *, expected_bytes: int | None = None) -> FileSource:
        """Random access; `expected_bytes` is ignored for local files."""
        return FileSource(self.fetch(repo, path), f"'{path}' of {repo}")

    def make_output_name(self, default_name: str) -> str:
        """The default output name. Raises RequestInvalid if it is too long."""
        return validate_output_name(default_name)

    def check_write(self, repo_id: str, *, create_pr: bool = False) -> None:
        """Raise OutputForbidden for a plain folder, an id without an owner, or a read-only location."""
        folder = self._require_writable(repo_id)
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputForbidden(
                f"The worker has no permission to write to {repo_id}.",
                hint="Give the worker's user write access to the local hub folder, or choose another output.",
            )

    def get_latest(self, repo_id: str) -> PinnedRepo | None:
        """The repo at `main`; None if it does not exist or has no commit."""
        try:
            return self.resolve(RepoRef(repo_id=validate_repo_id(repo_id)))
        except (RepoNotFound, RevisionNotFound):
            return None

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """A commit on main or a pull request whose message contains `marker`."""
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
        """Create one commit with the parent's files plus those of `folder`. `private` is ignored."""
        self.check_write(repo_id)
        store = RepoStore(self._get_folder(repo_id), repo_id)
        sha, branch = store.commit(folder, message=message, parent=parent, create_pr=create_pr)
        return self._build_published(store, repo_id, sha, branch)

    def _get_times(self, repo_id: str) -> tuple[datetime, datetime]:
        """(created, last modified), from file times."""
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
        """The repo's folder. A path that leads outside the root through a link raises RepoNotFound."""
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
            if any(entry.is_file() for entry in entries) or self._may_hold_only_folders(
                repo_id, kind, {entry.name for entry in entries}
            ):
                return PlainFolder(folder, repo_id, self._hashes, link_root=self._root)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as exc:
            raise HubUnavailable(f"The folder of {repo_id} cannot be read.") from exc
        raise RepoNotFound(
            f"{repo_id} is not in the local hub.",
            hint=(
                f"Check the spelling; {kind}s are stored in the local hub folder as "
                f"{('datasets/' if kind == 'dataset' else '')}owner/name."
            ),
        )

    def _may_hold_only_folders(self, repo_id: str, kind: RepoKind, names: set[str]) -> bool:
        """Datasets and libraries of adapters may. So does an owner's folder, but its id has no slash, and a
        repo whose first commit never ended."""
        if not names or "/" not in repo_id:
            return False
        return kind == "dataset" or not (repo_id.startswith("datasets/") or names <= STORE_FOLDERS)

    def _require_writable(self, repo_id: str) -> Path:
        folder = self._get_folder(repo_id)
        if "/" not in repo_id:
            raise OutputForbidden(f"'{repo_id}' has no owner; an output is named 'owner/name'.")
        try:
            existing: RepoStore | PlainFolder | None = self._find_repo(repo_id)
        except RepoNotFound:
            existing = None
        if isinstance(existing, PlainFolder):
            raise OutputForbidden(
                f"{repo_id} is a plain folder, which is read-only in the local hub.",
                hint="Choose another output.",
            )
        return folder
