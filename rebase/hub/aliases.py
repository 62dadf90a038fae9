"""Makes local model folders readable alongside a hub, as in `rebase transfer ./adapter --target ./llama`.

A folder named on the command line gets an alias, because requests name repos and never paths. All other
reads, and every write, go to the underlying hub.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rebase.errors import OutputForbidden, RequestInvalid
from rebase.hub.base import (
    ByteSource,
    Hub,
    ListedModel,
    PinnedRepo,
    Published,
    RepoInfo,
    is_repo_id,
)
from rebase.hub.content_hash import HashCache
from rebase.hub.folder_names import find_origin
from rebase.hub.plain_folder import PlainFolder
from rebase.schemas.references import RepoKind, split_reference
from rebase.schemas.repos import MAX_REPO_ID, RepoRef, check_repo_id

_REFERENCE_HINT = "A Hub repo is written owner/name, owner/name@revision or owner/name@revision:subfolder."


class FolderAliases:
    """Assigns repo ids to folders given by the user. An existing directory wins over a repo of the same
    name."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}  # alias → the folder's absolute path

    def to_reference(self, text: str) -> str:
        """The reference to use in the request: an alias for a directory, else `text` itself. A directory may
        be written `folder:subfolder`, as a repo is.

        Raises RequestInvalid if `text` is neither a directory nor a repo id.
        """
        folder = find_folder(text)
        if folder is None:
            return validate_repo_reference(text)
        path = str(folder.absolute())  # links are not resolved: their target may change
        for alias, known_path in self.folders.items():
            if known_path == path:
                return alias
        stem = (
            re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name).strip("-")[: MAX_REPO_ID - 8] or "folder"
        )
        alias = stem if re.match(r"[A-Za-z0-9_]", stem) else f"folder-{stem}"
        while alias in self.folders:
            alias = f"{stem}-{len(self.folders) + 1}"
        self.folders[check_repo_id(alias)] = path
        return alias


def find_folder(text: str) -> Path | None:
    """The directory that `text` names, as a path or as `folder:subfolder`; None if there is none. For a repo
    in the Hub's download cache it is the snapshot of `main`."""
    candidates = [text]
    if ":" in text:
        folder, _, subfolder = text.rpartition(":")
        candidates.append(f"{folder}/{subfolder}" if folder and subfolder else "")
    for candidate in candidates:
        try:
            if candidate and Path(candidate).is_dir():
                return _enter_snapshot(Path(candidate))
        except (OSError, ValueError):  # a name that the operating system rejects, such as one too long
            continue
    return None


def validate_repo_reference(text: str) -> str:
    """`text` itself if it can be a repo on the Hub, or an address of one. Raises RequestInvalid otherwise."""
    try:
        repo_id = split_reference(text)["repo_id"]
    except ValueError as exc:
        # An address is not repeated: it may hold a password.
        subject = "The reference" if "://" in text else f"There is no folder '{text}', and as a repo it"
        raise RequestInvalid(f"{subject} {exc}.", hint=_REFERENCE_HINT) from exc
    if not is_repo_id(repo_id):
        raise RequestInvalid(
            f"There is no folder '{text}', and it is not a Hub repo id.", hint=_REFERENCE_HINT
        )
    return text


def _enter_snapshot(folder: Path) -> Path:
    """The snapshot of main, for a folder models--owner--name of the download cache; else the folder."""
    head = folder / "refs" / "main"
    if not folder.absolute().name.startswith("models--") or not head.is_file():
        return folder
    snapshot = folder / "snapshots" / head.read_text("utf-8", errors="replace").strip()
    return snapshot if snapshot.is_dir() and find_origin(str(snapshot.absolute())) is not None else folder


class AliasedHub:
    """A `Hub` on top of `inner` that also reads local folders under their aliases.

    The repo id of a pinned folder is its absolute path, so that PEFT can find the base through
    `base_model_name_or_path` from any working directory. A folder of the Hub's download cache also has an
    `origin`, under which everybody else finds it.
    """

    def __init__(self, inner: Hub, folders: Mapping[str, str], hash_cache_dir: Path) -> None:
        cache = HashCache(hash_cache_dir)
        # Links may point anywhere: the user who gave the path can read their targets anyway, and download
        # caches are full of links.
        self._by_alias = {
            alias: PlainFolder(
                Path(folder),
                folder,
                cache,
                link_root=Path(Path(folder).resolve().anchor),
                origin=find_origin(folder) or find_origin(str(Path(folder).resolve())),
            )
            for alias, folder in folders.items()
        }
        self._by_path = {folder: self._by_alias[alias] for alias, folder in folders.items()}
        self._inner = inner

    def with_token(self, token: str | None) -> AliasedHub:
        """The same folders and the same hub, accessed with this token."""
        clone = copy.copy(self)
        clone._inner = self._inner.with_token(token)
        return clone

    def check_read(self, repo_id: str, *, kind: RepoKind = "model") -> None:
        """Check the hub; a folder's permissions are checked when its files are opened."""
        if kind != "model" or repo_id not in self._by_alias:
            self._inner.check_read(repo_id, kind=kind)

    def resolve(self, ref: RepoRef, *, kind: RepoKind = "model") -> PinnedRepo:
        """Pin a folder by its content, or a repo on the hub. Folders are models, never datasets."""
        folder = self._by_alias.get(ref.repo_id) if kind == "model" else None
        return folder.resolve(ref) if folder is not None else self._inner.resolve(ref, kind=kind)

    def get_info(self, repo_id: str) -> RepoInfo:
        """Delegated to the hub."""
        return self._inner.get_info(repo_id)

    def list_models(self, owner: str) -> Iterator[ListedModel]:
        """Delegated to the hub."""
        return self._inner.list_models(owner)

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """A file from a folder or from the hub."""
        folder = self._by_path.get(repo.repo_id)
        return folder.fetch(repo, path) if folder is not None else self._inner.fetch(repo, path)

    def open(self, repo: PinnedRepo, path: str, *, expected_bytes: int | None = None) -> ByteSource:
        """Random access to a file from a folder or from the hub."""
        folder = self._by_path.get(repo.repo_id)
        return (
            folder.open(repo, path)
            if folder is not None
            else self._inner.open(repo, path, expected_bytes=expected_bytes)
        )

    def make_output_name(self, default_name: str) -> str:
        """Delegated to the hub."""
        return self._inner.make_output_name(default_name)

    def check_write(self, repo_id: str, *, create_pr: bool = False) -> None:
        """Delegated to the hub, except that input folders are rejected."""
        self._reject_input_folder(repo_id)
        self._inner.check_write(repo_id, create_pr=create_pr)

    def get_latest(self, repo_id: str) -> PinnedRepo | None:
        """Delegated to the hub."""
        return self._inner.get_latest(repo_id)

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """Delegated to the hub."""
        return self._inner.find_commit(repo_id, marker)

    def publish(
        self, repo_id: str, folder: Path, *, message: str, parent: str | None, private: bool, create_pr: bool
    ) -> Published:
        """Delegated to the hub, except that input folders are rejected."""
        self._reject_input_folder(repo_id)
        return self._inner.publish(
            repo_id, folder, message=message, parent=parent, private=private, create_pr=create_pr
        )

    def _reject_input_folder(self, repo_id: str) -> None:
        if repo_id in self._by_alias:
            raise OutputForbidden(f"'{repo_id}' is a folder that is used as an input.")
