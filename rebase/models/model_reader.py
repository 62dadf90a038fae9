"""Opens a base model in a repo: config, tokenizer, and a reader over its safetensors files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from rebase.errors import FileMissing, UnsafeFile
from rebase.hub.base import Hub, PinnedRepo
from rebase.lora.tensors import TensorInfo
from rebase.models.repo_files import (
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    SHARD_PATTERN,
    read_index,
    read_json,
    reject_pickle,
)
from rebase.models.safetensors_file import SafetensorsFile

MAX_GENERATION_BYTES = 2**20  # typically a few hundred bytes
MAX_TOKENIZER_BYTES = 128 * 2**20  # the largest in use, Gemma 3's, has 33 MB
# Estimated bytes to read a header: 8 + n, where n is below 100 kB for a shard of a large model.
_HEADER_GUESS = 256 * 2**10
_SINGLE_FILE, _INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_GENERATION_CONFIG_FILE = "generation_config.json"


class ModelReader:
    """A `rebase.lora.tensors.TensorReader` over the shards of one model; each is opened on first use."""

    def __init__(self, hub: Hub, repo: PinnedRepo, index: Mapping[str, str] | None) -> None:
        """`index`: tensor → shard, or None for a model in one file."""
        self._hub = hub
        self._repo = repo
        self._index = index
        self._needed: dict[str, set[str]] = {}
        self._headers: dict[str, SafetensorsFile] = {}
        self._shards: dict[str, SafetensorsFile] = {}

    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor's dtype and shape; reads only the headers."""
        infos = {
            shard: self._open_header(shard).infos() for shard in sorted(set(self._shard_by_tensor.values()))
        }
        return {name: infos[shard][name] for name, shard in self._shard_by_tensor.items()}

    def declare_needed(self, names: Iterable[str]) -> None:
        """Declare which tensors will be read: a remote shard of which less than half is needed is then read
        with range requests instead of downloaded. Undeclared tensors can still be read.
        """
        for name in names:
            self._needed.setdefault(self._get_shard(name), set()).add(name)

    def count_needed_bytes(self, shard: str) -> int | None:
        """How many bytes of a shard were declared with `needed`; None if none were."""
        names = self._needed.get(shard)
        if names is None:
            return None
        spans = self._open_header(shard).spans
        return sum(spans[name].end - spans[name].begin for name in names)

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype."""
        return self._open_shard(self._get_shard(name)).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a 2-D tensor in its stored dtype."""
        return self._open_shard(self._get_shard(name)).read_rows(name, start, stop)

    @cached_property
    def _shard_by_tensor(self) -> Mapping[str, str]:
        """Tensor → shard, checked against the actual contents of the shards."""
        if self._index is None:
            return dict.fromkeys(self._open_header(_SINGLE_FILE).spans, _SINGLE_FILE)
        for name, shard in self._index.items():
            if name not in self._open_header(shard).spans:
                raise UnsafeFile(
                    f"The index of {self._repo.repo_id} says that '{name[:200]}' is in '{shard}'; it is "
                    "not there.",
                    hint="Upload the model again with an index that matches its files.",
                )
        return self._index

    def _get_shard(self, name: str) -> str:
        try:
            return self._shard_by_tensor[name]
        except KeyError:
            raise UnsafeFile(f"{self._repo} has no tensor '{name}'.") from None

    def _open_header(self, shard: str) -> SafetensorsFile:
        if shard not in self._headers:
            source = self._hub.open(self._repo, shard, expected_bytes=_HEADER_GUESS)
            self._headers[shard] = SafetensorsFile(source, f"'{shard}' of {self._repo}")
        return self._headers[shard]

    def _open_shard(self, shard: str) -> SafetensorsFile:
        if shard not in self._shards:
            source = self._hub.open(self._repo, shard, expected_bytes=self.count_needed_bytes(shard))
            spans = self._open_header(shard).spans
            self._shards[shard] = SafetensorsFile(source, f"'{shard}' of {self._repo}", spans=spans)
        return self._shards[shard]


def open_model(hub: Hub, repo: PinnedRepo) -> tuple[dict[str, Any], ModelReader, dict[str, Any] | None]:
    """(config.json, reader, tokenizer.json or None). Only the JSON files are read at this point.

    Raises FileMissing if a required file is missing, UnsafeFile for pickles and invalid indexes.
    """
    config = read_json(hub, repo, "config.json", MAX_CONFIG_BYTES, missing="not a Transformers model")
    if _SINGLE_FILE in repo.files:
        reader = ModelReader(hub, repo, None)
    elif _INDEX_FILE in repo.files:
        reader = ModelReader(hub, repo, read_index(hub, repo, _INDEX_FILE))
    else:
        reject_pickle(repo, repo.files)
        raise FileMissing(
            f"{repo} is not a readable base model: it has neither {_SINGLE_FILE} nor {_INDEX_FILE}.",
            hint="Use a repo with the full model in safetensors files.",
        )
    return config, reader, read_tokenizer(hub, repo)


def read_tokenizer(hub: Hub, repo: PinnedRepo) -> dict[str, Any] | None:
    """The repo's tokenizer.json, or None if it has none. Raises UnsafeFile if it is too large or no JSON."""
    if "tokenizer.json" not in repo.files:
        return None
    return read_json(hub, repo, "tokenizer.json", MAX_TOKENIZER_BYTES)


def read_eos_ids(hub: Hub, repo: PinnedRepo) -> tuple[int, ...]:
    """EOS ids from the repo's generation_config.json, often the only place where an instruct model names its
    end-of-turn token. The file is optional: if it is missing or invalid, the result is empty.
    """
    if _GENERATION_CONFIG_FILE not in repo.files:
        return ()
    try:
        eos = read_json(hub, repo, _GENERATION_CONFIG_FILE, MAX_GENERATION_BYTES).get("eos_token_id")
    except (FileMissing, UnsafeFile):
        return ()
    return tuple(id_ for id_ in (eos if isinstance(eos, list) else [eos]) if type(id_) is int)


def find_missing_shards(hub: Hub, repo: PinnedRepo) -> list[str]:
    """Shards that the model's index names but the repo does not have. Illegal names are left to
    `open_model`."""
    weight_map = read_json(hub, repo, _INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    listed = {str(shard) for shard in weight_map.values()} if isinstance(weight_map, dict) else set()
    return sorted(shard for shard in listed - repo.files.keys() if SHARD_PATTERN.match(shard))
