"""Opens an adapter in a repo: its config in PEFT's form, and a reader over its safetensors files.

Read: PEFT's folder, in one file or in shards with an index, and the folder of mlx-lm. Every other form is
named in the error, with the way to the one that can be read.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from rebase.errors import FileMissing, RebaseError, TransferError, UnsafeFile, UnsupportedAdapter
from rebase.hub.base import Hub, PinnedRepo, is_folder
from rebase.lora.config import CONFIG_FILE
from rebase.lora.mlx import MlxReader, is_mlx_config, read_mlx_config
from rebase.lora.tensors import TensorReader
from rebase.models.model_reader import ModelReader
from rebase.models.repo_files import MAX_CONFIG_BYTES, read_index, read_json, reject_pickle
from rebase.models.safetensors_file import SafetensorsFile
from rebase.models.safetensors_header import MAX_ADAPTER_TENSORS

_FILE, _INDEX_FILE = "adapter_model.safetensors", "adapter_model.safetensors.index.json"
_SHARD_PATTERN = re.compile(r"adapter_model-\d+-of-\d+\.safetensors")
_PICKLE_FILE, _MLX_FILE = "adapter_model.bin", "adapters.safetensors"
# Of a trainer's checkpoint; none of them holds the adapter.
_TRAINER_FILES = ("optimizer.", "scheduler.", "scaler.", "rng_state", "training_args.")
_MAX_LISTED = 8


def open_adapter(hub: Hub, repo: PinnedRepo) -> tuple[dict[str, Any], TensorReader]:
    """(adapter_config.json as PEFT writes it, reader over the weights). Pickles are never opened.

    Raises FileMissing if there is no adapter, naming the subfolders that hold one, UnsafeFile if the weights
    are only in a pickle, UnsupportedAdapter for other formats.
    """
    if CONFIG_FILE not in repo.files:
        raise _make_missing_error(repo, f"it has no {CONFIG_FILE}")
    config = read_json(hub, repo, CONFIG_FILE, MAX_CONFIG_BYTES)
    if _FILE in repo.files:
        return config, _open_file(hub, repo, _FILE)
    if _INDEX_FILE in repo.files:
        return config, _open_shards(hub, repo)
    if is_mlx_config(config):
        converted = read_mlx_config(config)
        if _MLX_FILE in repo.files:
            return converted, MlxReader(_open_file(hub, repo, _MLX_FILE))
        raise FileMissing(
            f"{repo} is an adapter of mlx-lm without its weights: no {_MLX_FILE}.",
            hint="Upload the whole folder that mlx-lm wrote to --adapter-path.",
        )
    raise _make_missing_error(repo, f"it has no {_FILE}")


def _open_file(hub: Hub, repo: PinnedRepo, path: str) -> SafetensorsFile:
    return SafetensorsFile(hub.open(repo, path), f"'{path}' of {repo}", max_tensors=MAX_ADAPTER_TENSORS)


def _open_shards(hub: Hub, repo: PinnedRepo) -> ModelReader:
    """A reader over the shards. A tensor that the index leaves out would be lost silently: it is refused."""
    index = read_index(hub, repo, _INDEX_FILE)
    reader = ModelReader(hub, repo, index)
    listed = reader.infos().keys()
    for shard in sorted({*index.values(), *filter(_SHARD_PATTERN.fullmatch, repo.files)}):
        unlisted = sorted(_open_file(hub, repo, shard).infos().keys() - listed)
        if unlisted:
            raise UnsafeFile(
                f"'{shard}' of {repo} holds '{unlisted[0][:200]}', which the index does not say.",
                hint="Upload the adapter again with an index that matches its files.",
            )
    return reader


def _make_missing_error(repo: PinnedRepo, problem: str) -> RebaseError | TransferError:
    """Says what the repo holds instead of an adapter that can be read."""
    names = set(repo.files)
    if _PICKLE_FILE in names:
        return UnsafeFile(
            f"{repo} stores its weights in a pickle file ('{_PICKLE_FILE}'), which can run code when loaded.",
            hint="Where you trust it, load it with PEFT and save it again: "
            "`PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)` writes safetensors.",
        )
    if gguf := sorted(name for name in names if name.endswith(".gguf") and "/" not in name):
        return UnsupportedAdapter(
            f"{repo} holds '{gguf[0][:200]}', a file in llama.cpp's GGUF format, which is not read.",
            hint="Name the PEFT folder (adapter_config.json, adapter_model.safetensors) from which "
            "convert_lora_to_gguf.py of llama.cpp made it; the card often names that repo.",
        )
    folders = sorted(
        (path.parent.as_posix() for path in map(PurePosixPath, names) if path.name == CONFIG_FILE),
        key=lambda folder: (folder.count("/"), len(folder), folder),
    )
    if folders := [folder for folder in folders if folder != "."]:
        listed = ", ".join(folders[:_MAX_LISTED]) + (", …" if len(folders) > _MAX_LISTED else "")
        example = f"{repo.public.repo_id}{'/' if is_folder(repo.public.repo_id) else ':'}{folders[-1]}"
        return FileMissing(
            f"{repo} is not a PEFT adapter itself: {problem}; it holds adapters in {listed}.",
            hint=f"Name one of these folders, as in {example}; over HTTP it is adapter.subfolder.",
        )
    if CONFIG_FILE in names:
        reject_pickle(
            repo, (name for name in names if not name.rpartition("/")[2].startswith(_TRAINER_FILES))
        )
    is_base = "config.json" in names and CONFIG_FILE not in names
    return FileMissing(
        f"{repo} is not a PEFT adapter: {problem}.",
        hint="It has the config.json of a full model; name the adapter's repo."
        if is_base
        else "Save the adapter with save_pretrained and upload the whole folder.",
    )
