"""Model folders that are not managed by a hub, such as a user's own folder or a download.

Their revision is a hash of their content, so a result identifies its exact inputs. If a folder changes while
a job is running, the job notices when it next opens a file.
"""

from __future__ import annotations

from pathlib import Path

from rebase.errors import FileMissing, HubUnavailable, RevisionNotFound
from rebase.hub.base import HubRevision, PinnedRepo
from rebase.hub.content_hash import SHA_PATTERN, FileRecord, HashCache, compute_commit_sha
from rebase.hub.files import FileSource, list_files
from rebase.schemas.repos import RepoRef


class PlainFolder:
    """One folder read as a repo with a single revision, called `main`."""

    def __init__(
        self,
        folder: Path,
        repo_id: str,
        hashes: HashCache,
        *,
        link_root: Path | None = None,
        origin: HubRevision | None = None,
    ) -> None:
        """Links may point anywhere below `link_root`, by default the folder itself. `origin`: what the folder
        is a copy of."""
        self._folder = folder.resolve()
        self._repo_id = repo_id
        self._hashes = hashes
        self._link_root = (link_root or folder).resolve()
        self._origin = origin

    def pin(self) -> PinnedRepo:
        """Pin the folder's current content. Raises HubUnavailable if it cannot be read."""
        try:
            infos = list_files(self._folder, link_root=self._link_root, name=self._repo_id)
            files = {
                path: FileRecord(info.st_size, self._hashes.get_sha256((self._folder / path).resolve(), info))
                for path, info in infos.items()
            }
        except OSError as exc:
            raise HubUnavailable(f"The folder of {self._repo_id} cannot be read.") from exc
        sizes = {path: file.size for path, file in files.items()}
        return PinnedRepo(self._repo_id, compute_commit_sha(None, "", files), sizes, origin=self._origin)

    def resolve(self, ref: RepoRef) -> PinnedRepo:
        """The folder at `main` or at its current sha, or the commit that it is a copy of. Raises
        RevisionNotFound for anything else."""
        pinned = self.pin()
        if ref.revision not in ("main", pinned.sha, pinned.public.sha):
            description = "an older version" if SHA_PATTERN.match(ref.revision) else f"'{ref.revision}'"
            raise RevisionNotFound(
                f"{self._repo_id} is a plain folder at revision {pinned.sha}; it has no {description}.",
                hint="Leave out the revision.",
            )
        return pinned.enter(ref.subfolder)

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """A file of the pinned content. Raises FileMissing, or RevisionNotFound if the content changed."""
        if path not in repo.files:
            raise FileMissing(f"{repo.repo_id} has no file '{path}'.")
        if self.pin().sha != repo.sha:
            raise RevisionNotFound(
                f"The files of {repo.repo_id} changed while they were being read.",
                hint="Try again when nothing is writing to that folder.",
            )
        return self._folder / repo.get_full_path(path)

    def open(self, repo: PinnedRepo, path: str) -> FileSource:
        """Random access to a file of the pinned content."""
        return FileSource(self.fetch(repo, path), f"'{path}' of {repo}")
