"""The forms that adapters come in: what is read, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rebase.errors import FileMissing, RebaseError, TransferError, UnsafeFile, UnsupportedAdapter
from rebase.hub.local import LocalHub
from rebase.lora.tensors import TensorReader
from rebase.models.adapter_reader import open_adapter
from rebase.models.model_reader import open_model
from rebase.schemas.repos import RepoRef
from support.safetensors_files import write_tensors

CONFIG = {"peft_type": "LORA", "r": 4}
A, B = "q_proj.lora_A.weight", "q_proj.lora_B.weight"
TENSORS = {A: torch.arange(8.0).view(2, 4), B: torch.ones(6, 2)}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 13640984\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repo of the local hub with nothing but a card."""
    folder = tmp_path / "hub" / "acme" / "lora"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# A card")
    return folder


def open_it(folder: Path, subfolder: str | None = None) -> tuple[dict[str, Any], TensorReader]:
    hub = LocalHub(folder.parents[1])
    return open_adapter(hub, hub.resolve(RepoRef(repo_id="acme/lora", subfolder=subfolder)))


def write_config(folder: Path, config: dict[str, Any] = CONFIG) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))


def write_shards(folder: Path, **changes: str) -> None:
    """One tensor a shard, and the index with some entries changed."""
    write_config(folder)
    index = {}
    for number, name in enumerate((A, B), 1):
        index[name] = f"adapter_model-{number:05}-of-00002.safetensors"
        write_tensors(folder / index[name], {name: TENSORS[name]})
    document = {"metadata": {}, "weight_map": index | changes}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(document))


def assert_same(reader: TensorReader) -> None:
    assert {name: info.shape for name, info in reader.infos().items()} == {A: (2, 4), B: (6, 2)}
    for name, tensor in TENSORS.items():
        assert torch.equal(reader.read(name), tensor)


def test_an_adapter_in_shards_is_read_as_one(folder: Path) -> None:
    write_shards(folder)
    config, reader = open_it(folder)
    assert config == CONFIG
    assert_same(reader)


def test_an_adapter_in_a_subfolder_is_read(folder: Path) -> None:
    (folder / "sql").mkdir()
    write_shards(folder / "sql")
    assert_same(open_it(folder, "sql")[1])


def test_an_index_that_leaves_a_tensor_out_is_refused(folder: Path) -> None:
    write_shards(folder)
    write_tensors(
        folder / "adapter_model-00002-of-00002.safetensors",
        {B: TENSORS[B], "k_proj.lora_A.weight": TENSORS[A]},
    )
    with pytest.raises(UnsafeFile, match=r"holds 'k_proj\.lora_A\.weight', which the index does not say"):
        open_it(folder)


def test_an_index_that_leaves_a_shard_out_is_refused(folder: Path) -> None:
    write_shards(folder)
    index = {"weight_map": {A: "adapter_model-00001-of-00002.safetensors"}}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeFile, match=r"'adapter_model-00002-of-00002\.safetensors' of .* holds"):
        open_it(folder)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ("adapter_model-00002-of-00002.safetensors", "it is not"),
        ("adapter_model-00009-of-00002.safetensors", "not a safetensors file in this repo"),
        ("../lora/adapter_model-00001-of-00002.safetensors", "not a safetensors file in this repo"),
    ],
)
def test_an_index_that_lies_is_refused(folder: Path, entry: str, cause: str) -> None:
    write_shards(folder, **{A: entry})
    with pytest.raises(UnsafeFile, match=cause):
        open_it(folder)


def test_a_config_with_a_byte_order_mark_and_windows_line_ends_is_read(folder: Path) -> None:
    text = json.dumps(CONFIG, indent=2).replace("\n", "\r\n")
    (folder / "adapter_config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    write_tensors(folder / "adapter_model.safetensors", TENSORS)
    assert open_it(folder)[0] == CONFIG


def test_a_folder_of_mlx_lm_is_read_in_the_form_of_peft(folder: Path) -> None:
    write_config(folder, {"lora_parameters": {"rank": 2, "scale": 10.0}, "num_layers": 4})
    write_tensors(folder / "adapters.safetensors", {"q_proj.lora_a": TENSORS[A], "q_proj.lora_b": TENSORS[B]})
    write_tensors(folder / "0000100_adapters.safetensors", {"q_proj.lora_a": TENSORS[A]})
    config, reader = open_it(folder)
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 20.0)
    assert torch.equal(reader.read(f"base_model.model.{A}"), TENSORS[A].T)


def test_a_folder_of_mlx_lm_without_weights_is_incomplete(folder: Path) -> None:
    write_config(folder, {"lora_parameters": {"rank": 2, "scale": 10.0}})
    with pytest.raises(FileMissing, match=r"mlx-lm without its weights: no adapters\.safetensors"):
        open_it(folder)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_git_lfs_pointer_in_place_of_an_adapters_file_is_said(folder: Path, name: str) -> None:
    write_config(folder)
    (folder / name).write_text(POINTER)
    (folder / "adapter_model.safetensors").touch()
    with pytest.raises(UnsafeFile, match=f"'{name}' of acme/lora@.* is a Git LFS pointer") as caught:
        open_it(folder)[1].infos()
    assert "git lfs pull" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_git_lfs_pointer_in_place_of_a_bases_file_is_said(folder: Path, name: str) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    write_tensors(folder / "model.safetensors", TENSORS)
    (folder / name).write_text(POINTER)
    hub = LocalHub(folder.parents[1])
    with pytest.raises(UnsafeFile, match=f"'{name}' of acme/lora@.* is a Git LFS pointer") as caught:
        open_model(hub, hub.resolve(RepoRef(repo_id="acme/lora")))[1].infos()
    assert "git lfs pull" in (caught.value.hint or "")


def test_a_library_names_the_folders_that_hold_adapters(folder: Path) -> None:
    for name in ("checkpoint-1000", "checkpoint-500", "runs/deep"):
        (folder / name).mkdir(parents=True)
        write_config(folder / name)
    with pytest.raises(
        FileMissing, match="it holds adapters in checkpoint-500, checkpoint-1000, runs/deep"
    ) as caught:
        open_it(folder)
    assert "acme/lora:runs/deep" in (caught.value.hint or "")


def say(folder: Path) -> RebaseError | TransferError:
    with pytest.raises((RebaseError, TransferError)) as caught:
        open_it(folder)
    return caught.value


@pytest.mark.parametrize("has_config", [True, False])
def test_a_gguf_adapter_is_refused_with_the_way_to_its_peft_form(folder: Path, has_config: bool) -> None:
    (folder / "sql-lora-f16.gguf").write_bytes(b"GGUF")
    if has_config:
        write_config(folder)
    error = say(folder)
    assert isinstance(error, UnsupportedAdapter)
    assert "'sql-lora-f16.gguf', a file in llama.cpp's GGUF format" in error.message
    assert "convert_lora_to_gguf.py" in (error.hint or "")


def test_an_adapter_that_is_only_a_pickle_is_refused_with_the_way_to_convert_it(folder: Path) -> None:
    write_config(folder)
    for name in ("adapter_model.bin", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(b"pickle")
    error = say(folder)
    assert isinstance(error, UnsafeFile)
    assert "a pickle file ('adapter_model.bin')" in error.message
    assert "save_pretrained" in (error.hint or "")


def test_the_files_of_a_trainer_are_not_taken_for_weights(folder: Path) -> None:
    write_config(folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(b"pickle")
    assert isinstance(error := say(folder), FileMissing)
    assert "has no adapter_model.safetensors" in error.message


def test_a_full_model_is_told_from_an_adapter(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    error = say(folder)
    assert "not a PEFT adapter: it has no adapter_config.json" in error.message
    assert "config.json of a full model" in (error.hint or "")
