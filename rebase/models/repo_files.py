"""JSON files and shard indexes of a repo, read with a bound on their size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rebase.errors import FileMissing, UnsafeFile
from rebase.hub.base import Hub, PinnedRepo
from rebase.models.safetensors_header import load_json_object

MAX_CONFIG_BYTES = 8 * 2**20
MAX_INDEX_BYTES = 64 * 2**20
SHARD_PATTERN = re.compile(r"^[A-Za-z0-9_][\w.-]*\.safetensors$", re.ASCII)
_PICKLE_PATTERN = re.compile(r"\.(bin|pt|pth|pkl|pickle|ckpt)$")


def read_json(
    hub: Hub, repo: PinnedRepo, path: str, max_bytes: int, *, missing: str | None = None
) -> dict[str, Any]:
    """A JSON file of the repo; its size is checked before it is fetched."""
    if path not in repo.files:
        raise FileMissing(f"{repo} is {missing}: it has no {path}.", hint="Check that it is the right repo.")
    if repo.files[path] > max_bytes:
        raise UnsafeFile(f"'{path}' of {repo} has {repo.files[path]} bytes; at most {max_bytes} are allowed.")
    return load_json_object(hub.fetch(repo, path), f"'{path}' of {repo}", max_bytes=max_bytes)


def read_index(hub: Hub, repo: PinnedRepo, path: str) -> dict[str, str]:
    """The weight_map of an index: tensor → shard; every shard must be a file in the same folder."""
    weight_map = read_json(hub, repo, path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsafeFile(f"'{path}' of {repo} has no weight_map.")
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        if not SHARD_PATTERN.match(shard) or shard not in repo.files:
            raise UnsafeFile(
                f"'{path}' of {repo} points at '{shard[:200]}', which is not a safetensors file in "
                "this repo.",
                hint="Upload the model again with an index that matches its files.",
            )
    return weight_map


def reject_pickle(repo: PinnedRepo, paths: Iterable[str]) -> None:
    """Raises UnsafeFile if weights among `paths` are in a format that runs code when it is loaded."""
    pickles = sorted(path for path in paths if _PICKLE_PATTERN.search(path))
    if pickles:
        raise UnsafeFile(
            f"{repo} stores its weights in a pickle file ('{pickles[0]}'), which can run code when loaded.",
            hint="Convert the weights to safetensors and upload them; Rebase never opens pickle files.",
        )
