"""The Hugging Face Hub, or any server with the same API, through huggingface_hub.

The token is always passed explicitly (`False` if there is none, so a token stored on the machine is never
used), and every error is translated to one of `rebase.errors`. Reads are retried a few times while the Hub is
unavailable; a commit is sent once, and if its outcome is unknown, the history is searched for its message.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    DatasetInfo,
    HfApi,
    ModelInfo,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from rebase.errors import (
    DiskFull,
    FileMissing,
    HubError,
    HubUnavailable,
    OutputForbidden,
    ParentMoved,
    RepoNotFound,
    RevisionNotFound,
)
from rebase.hub.base import (
    ByteSource,
    ListedModel,
    PinnedRepo,
    Published,
    RepoInfo,
    validate_output_name,
    validate_repo_id,
)
from rebase.hub.content_hash import SHA_PATTERN, compute_model_digest
from rebase.hub.files import FileSource, list_files
from rebase.hub.history import CommitHistory
from rebase.hub.remote_errors import WRITE_HINT, hub_errors
from rebase.hub.repo_metadata import get_licenses, get_tags
from rebase.hub.transport import RangeSource, install_client, retry_read
from rebase.schemas.references import RepoKind
from rebase.schemas.repos import RepoRef

_WRITE_ROLES = frozenset({"admin", "write", "contributor"})


def can_create_repo(whoami: Mapping[str, Any], owner: str) -> bool:
    """Whether a token may create a repo under `owner`, given the response of `whoami-v2`. Tokens of unknown
    type are assumed to be allowed; the Hub checks again when the repo is created.
    """
    token = (whoami.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "read":
        return False
    if role == "fineGrained":
        scoped = (token.get("fineGrained") or {}).get("scoped") or []
        return any(
            (scope.get("entity") or {}).get("name") == owner and "repo.write" in scope.get("permissions", ())
            for scope in scoped
        )
    if whoami.get("name") == owner:
        return True
    return any(
        org.get("name") == owner and org.get("roleInOrg", "write") in _WRITE_ROLES
        for org in whoami.get("orgs") or []
    )


# Files that the Hub itself adds to a new repo.
_NEW_REPO_FILES = frozenset({".gitattributes"})


class RemoteHub:
    """A `Hub` over HTTP."""

    def __init__(
        self,
        token: str | None,
        endpoint: str | None,
        cache_dir: Path,
        *,
        timeout_s: float = 60.0,
        wait_s: float = 1.0,
    ) -> None:
        """`endpoint`: None means https://huggingface.co, or the value of HF_ENDPOINT when the client was
        imported. `timeout_s` limits each wait for the server; `wait_s` is the first retry delay for reads.
        """
        install_client(timeout_s)
        disable_progress_bars()
        self._token: str | bool = token or False
        self._api = HfApi(endpoint=endpoint, token=self._token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._cache_dir = cache_dir
        self._timeout_s = timeout_s
        self._wait_s = wait_s

    def with_token(self, token: str | None) -> RemoteHub:
        """The same server and cache folder, accessed with another token."""
        return RemoteHub(
            token, self._api.endpoint, self._cache_dir, timeout_s=self._timeout_s, wait_s=self._wait_s
        )

    def check_read(self, repo_id: str, *, kind: RepoKind = "model") -> None:
        """Raise RepoGated, RepoNotFound or HubUnauthorized unless the token can read this repo now."""

        def check() -> None:
            with hub_errors(repo_id):
                self._api.auth_check(validate_repo_id(repo_id), repo_type=kind)

        retry_read(check, self._wait_s)

    def resolve(self, ref: RepoRef, *, kind: RepoKind = "model") -> PinnedRepo:
        """Pin a branch, tag or sha, with every file and its size."""
        return retry_read(lambda: self._fetch_pinned(ref, kind), self._wait_s)

    def get_info(self, repo_id: str) -> RepoInfo:
        """The model at main, with its card's metadata as parsed by the Hub."""
        return retry_read(lambda: self._fetch_info(repo_id), self._wait_s)

    def list_models(self, owner: str) -> Iterator[ListedModel]:
        """Pages are fetched lazily and without retries, because callers poll regularly."""
        with hub_errors(f"the models of {owner}"):
            for model in self._api.list_models(
                author=owner, sort="last_modified", expand=["sha", "createdAt", "lastModified"]
            ):
                if model.sha and model.created_at and model.last_modified:
                    yield ListedModel(model.id, model.sha, model.created_at, model.last_modified)

    def fetch(self, repo: PinnedRepo, path: str) -> Path:
        """The file in the client's shared cache, downloaded if it is not there."""
        return retry_read(lambda: self._download(repo, path), self._wait_s, attempts=2)

    def open(self, repo: PinnedRepo, path: str, *, expected_bytes: int | None = None) -> ByteSource:
        """Range requests if `expected_bytes` is less than half of a file that is not cached; else the whole
        file is downloaded.
        """
        size = repo.files.get(path)
        name = f"'{path}' of {repo}"
        if size is None:
            raise FileMissing(f"{repo.repo_id} has no file '{repo.get_full_path(path)}' at {repo.sha}.")
        cached = self._find_cached(repo, path)
        if isinstance(cached, str) or expected_bytes is None or 2 * expected_bytes >= size:
            return FileSource(self.fetch(repo, path), name)
        url = hf_hub_url(
            repo.repo_id,
            repo.get_full_path(path),
            repo_type=repo.kind,
            revision=repo.sha,
            endpoint=self._api.endpoint,
        )
        return RangeSource(url, self._headers, size, name, lambda: self.fetch(repo, path), self._wait_s)

    def make_output_name(self, default_name: str) -> str:
        """The default name with '--' collapsed to '-': the Hub does not allow repeated dashes."""
        while "--" in default_name:
            default_name = default_name.replace("--", "-")
        return validate_output_name(default_name)

    def check_write(self, repo_id: str, *, create_pr: bool = False) -> None:
        """Raise OutputForbidden unless the token may commit there, create the repo, or (for a pull request)
        read it.
        """
        if "/" not in validate_repo_id(repo_id):
            raise OutputForbidden(f"'{repo_id}' has no owner; an output is named 'owner/name'.")
        if not self._token:
            raise OutputForbidden(f"Writing to {repo_id} needs a token.", hint=WRITE_HINT)
        try:
            retry_read(lambda: self._check_can_write(repo_id, create_pr), self._wait_s)
        except RepoNotFound:
            retry_read(lambda: self._check_can_create(repo_id), self._wait_s)

    def get_latest(self, repo_id: str) -> PinnedRepo | None:
        """The repo at main; None if it does not exist or is hidden from this token."""
        try:
            return self.resolve(RepoRef(repo_id=validate_repo_id(repo_id)))
        except (RepoNotFound, RevisionNotFound):
            return None

    def find_commit(self, repo_id: str, marker: str) -> Published | None:
        """A commit on main or a pull request whose message contains `marker`."""
        history = CommitHistory(self._api, validate_repo_id(repo_id), self._headers)
        try:
            return retry_read(lambda: history.find(lambda message: marker in message), self._wait_s)
        except RepoNotFound:
            return None

    def publish(
        self, repo_id: str, folder: Path, *, message: str, parent: str | None, private: bool, create_pr: bool
    ) -> Published:
        """Create the repo if needed, then one commit. If the response is lost, the commit is searched by its
        message: HubUnavailable means it was not found, ParentMoved that somebody else committed first.
        """
        with hub_errors(repo_id, writing=True):
            if parent is None:
                self._api.create_repo(validate_repo_id(repo_id), private=private, exist_ok=True)
                parent = self._get_initial_commit(repo_id)
        try:
            return self._commit(repo_id, folder, message, parent, create_pr)
        except (HubUnavailable, ParentMoved):
            expected_message = " ".join(message.split())
            history = CommitHistory(self._api, repo_id, self._headers)
            existing = retry_read(
                lambda: history.find(lambda text: expected_message in " ".join(text.split())), self._wait_s
            )
            if existing is None:
                raise
            return existing

    def _commit(
        self, repo_id: str, folder: Path, message: str, parent: str | None, create_pr: bool
    ) -> Published:
        title, _, text = message.partition("\n")
        with hub_errors(repo_id, writing=True):
            commit = self._api.create_commit(
                repo_id,
                [
                    CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(folder / path))
                    for path in list_files(folder, link_root=folder.resolve(), name="the output")
                ],
                commit_message=title,
                commit_description=text.strip(),
                parent_commit=parent,
                create_pr=create_pr,
            )
        return Published(repo_id, commit.oid, commit.commit_url, commit.pr_url)

    def _get_initial_commit(self, repo_id: str) -> str | None:
        """The initial commit of a new repo. Raises ParentMoved if the repo contains anything else."""
        latest = self.get_latest(repo_id)
        if latest is not None and not latest.files.keys() <= _NEW_REPO_FILES:
            raise ParentMoved(
                f"{repo_id} was expected to be new, but it contains files.",
                hint="Look at what is there, or choose another output.",
            )
        return latest.sha if latest is not None else None

    def _fetch_info(self, repo_id: str) -> RepoInfo:
        with hub_errors(repo_id):
            model_info = self._api.model_info(
                validate_repo_id(repo_id), revision="main", files_metadata=True, timeout=self._timeout_s
            )
        card = vars(model_info.card_data) if model_info.card_data is not None else {}
        hashes = {
            file.rfilename: file.lfs.sha256 if file.lfs is not None else file.blob_id or ""
            for file in model_info.siblings or []
        }
        tags, licenses = get_tags({"tags": model_info.tags}), get_licenses(card)
        repo = self._build_pinned_repo(RepoRef(repo_id=repo_id), model_info, "model")
        return RepoInfo(repo, model_info.created_at, tags, licenses, compute_model_digest(hashes))

    def _fetch_pinned(self, ref: RepoRef, kind: RepoKind) -> PinnedRepo:
        fetch_info = self._api.model_info if kind == "model" else self._api.dataset_info
        with hub_errors(str(ref)):
            info = fetch_info(
                validate_repo_id(ref.repo_id),
                revision=ref.revision,
                files_metadata=True,
                timeout=self._timeout_s,
            )
        return self._build_pinned_repo(ref, info, kind)

    def _build_pinned_repo(self, ref: RepoRef, info: ModelInfo | DatasetInfo, kind: RepoKind) -> PinnedRepo:
        sha, siblings = info.sha or "", info.siblings or []
        sizes = {file.rfilename: file.size for file in siblings if file.size is not None}
        if not SHA_PATTERN.match(sha) or len(sizes) != len(siblings):
            raise HubError(f"{ref}: the Hub's response has no commit, or files without sizes.")
        return PinnedRepo(ref.repo_id, sha, sizes, kind).enter(ref.subfolder)

    def _download(self, repo: PinnedRepo, path: str) -> Path:
        name = f"'{path}' of {repo}"
        with hub_errors(name):
            if not isinstance(self._find_cached(repo, path), str):
                self._check_space(repo.files.get(path, 0), name)
            return Path(
                hf_hub_download(
                    repo.repo_id,
                    repo.get_full_path(path),
                    repo_type=repo.kind,
                    revision=repo.sha,
                    cache_dir=self._cache_dir,
                    token=self._token,
                    endpoint=self._api.endpoint,
                )
            )

    def _find_cached(self, repo: PinnedRepo, path: str) -> object:
        """The file's path in the client's cache (a str); any other value if it is not cached."""
        return try_to_load_from_cache(
            repo.repo_id, repo.get_full_path(path), self._cache_dir, revision=repo.sha, repo_type=repo.kind
        )

    def _check_space(self, size: int, name: str) -> None:
        """Raise DiskFull if a file about to be downloaded does not fit."""
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._cache_dir).free
        if free < size:
            raise DiskFull(
                f"{name} has {size} bytes, but only {free} are free on the worker.",
                hint="Free disk space on the machine that runs the worker; the job can then be retried.",
            )

    def _check_can_write(self, repo_id: str, create_pr: bool) -> None:
        with hub_errors(repo_id, writing=True):
            self._api.auth_check(repo_id, write=not create_pr)

    def _check_can_create(self, repo_id: str) -> None:
        with hub_errors(repo_id, writing=True):
            whoami = self._api.whoami(token=self._token)
        if not can_create_repo(whoami, repo_id.partition("/")[0]):
            raise OutputForbidden(
                f"{repo_id} does not exist, and the token in use has no permission to create it.",
                hint=WRITE_HINT,
            )
