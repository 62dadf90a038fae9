"""Folders that a person names on the command line, shown to the pipeline as repos.

A request holds repo ids, never paths. So `rebase transfer ./my-adapter …` makes up an alias such as
`local/my-adapter` for each folder, and this hub serves the aliases from their folders and passes everything
else on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.errors import OutputForbidden, RepoNotFound
from core.requests import RepoRef
from workers.hub.content import HashCache
from workers.hub.plain import PlainFolder
from workers.hub.port import ByteSource, HubPort, PinnedRepo, Published


class FolderRepo:
    """The hub port over named folders, with another hub behind it for every other id. Folders are only
    read.
    """

    def __init__(self, paths: Mapping[str, Path], inner: HubPort, *, hashes: HashCache | None = None) -> None:
        """`paths`: repo id → folder. RepoNotFound when one is no folder."""
        self._inner = inner
        known = hashes or HashCache()
        self._folders: dict[str, PlainFolder] = {}
        for repo_id, path in paths.items():
            if not path.is_dir():
                raise RepoNotFound(f"'{path}' is not a folder.", hint="Check the spelling of the path.")
            self._folders[repo_id] = PlainFolder(path, repo_id, known, inside=_boundary(path))

    def check_read(self, repo_id: str) -> None:
        """A named folder is its user's own."""
        if repo_id not in self._folders:
            self._inner.check_read(repo_id)

    def resolve(self, ref: RepoRef) -> PinnedRepo:
        """A named folder at its content's hash, or the inner hub's answer."""
        folder = self._folders.get(ref.repo_id)
        return folder.resolve(ref) if folder else self._inner.resolve(ref)

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """A file of a named folder, or the inner hub's answer."""
        folder = self._folders.get(repo.repo_id)
        return folder.fetch(repo, path) if folder else self._inner.fetch(repo, path)

    def open(self, repo: PinnedRepo, path: str, *, wanted: int | None = None) -> ByteSource:
        """Random access to a file of a named folder, or the inner hub's answer."""
        folder = self._folders.get(repo.repo_id)
        return folder.open(repo, path) if folder else self._inner.open(repo, path, wanted=wanted)

    def default_output(self, contract_name: str) -> str:
        """The inner hub's rule: outputs go there."""
        return self._inner.default_output(contract_name)

    def check_write(self, repo_id: str) -> None:
        """OutputForbidden for a named folder."""
        if repo_id in self._folders:
            raise OutputForbidden(f"{repo_id} stands for a folder that is only read.")
        self._inner.check_write(repo_id)

    def head(self, repo_id: str) -> PinnedRepo | None:
        """The folder as it is now, or the inner hub's answer."""
        folder = self._folders.get(repo_id)
        return folder.pin() if folder else self._inner.head(repo_id)

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """A named folder has no history."""
        return None if repo_id in self._folders else self._inner.find_commit(repo_id, marker)

    def publish(
        self, repo_id: str, folder: Path, *, message: str, parent: str | None, private: bool, create_pr: bool
    ) -> Published:
        """To the inner hub; OutputForbidden for a named folder."""
        self.check_write(repo_id)
        return self._inner.publish(
            repo_id, folder, message=message, parent=parent, private=private, create_pr=create_pr
        )


def _boundary(path: Path) -> Path:
    """How far links inside the folder may lead: a snapshot in the Hub client's cache links to its blobs next
    door.
    """
    folder = path.resolve()
    return folder.parent.parent if folder.parent.name == "snapshots" else folder
