"""What the path of a model folder tells: adapters name their base by one, and caches have a layout."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath  # the latter splits at both kinds of slash

from rebase.hub.base import HubRevision, PinnedRepo, is_folder
from rebase.schemas.references import check_subfolder
from rebase.schemas.repos import check_repo_id

# <cache>/models--owner--name/snapshots/<commit>[/subfolder], as huggingface_hub lays its download cache out.
_SNAPSHOT = re.compile(
    r"(?:^|/)models--(?P<name>[^/]+)/snapshots/(?P<sha>[0-9a-f]{40})(?:/(?P<subfolder>[^/].*?))?/?$"
)


def find_origin(folder: str) -> HubRevision | None:
    """The repo and commit that a folder of the Hub's download cache holds; None for any other folder. Only
    the text is looked at: the path may be one of another machine, or a stranger's."""
    match = _SNAPSHOT.search(folder)
    if match is None:
        return None
    try:
        repo_id = check_repo_id(match["name"].replace("--", "/"))
        subfolder = check_subfolder(match["subfolder"]) if match["subfolder"] else None
    except ValueError:
        return None
    return HubRevision(repo_id, match["sha"], subfolder)


def describe_base(name: str) -> str:
    """A base as an adapter names it, for a sentence. Of a path, which PEFT writes for a model from a folder,
    it shows the last part or the repo that it is a copy of: the rest belongs to the machine of the training.
    """
    origin = find_origin(name)
    if origin is not None:
        name = origin.repo_id
    elif name.startswith(("/", "./", "../", "~")) or "\\" in name:
        return f"a folder '{PureWindowsPath(name).name[:200]}'"
    return f"'{name[:200]}'"


def describe_repo(repo: PinnedRepo, role: str) -> str:
    """A repo for a sentence that others read: its public name, or for a plain folder its `role`."""
    name = repo.public.repo_id
    return f"the folder given as {role}" if is_folder(name) else f"'{name}'"


def is_named(repo: PinnedRepo, name: str) -> bool:
    """Whether `name`, such as an adapter's base_model_name_or_path, means this repo: its id, the id of what
    it is a copy of, its path, or the path of a copy of it in a download cache."""
    if name in (repo.repo_id, repo.public.repo_id):
        return True
    origin = find_origin(name)
    if origin is not None and origin.repo_id == repo.public.repo_id:
        return True
    return is_folder(repo.repo_id) and str(Path(name).absolute()) == repo.repo_id
