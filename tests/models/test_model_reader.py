"""Models and adapters in repos: what is read, how little of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rebase.errors import FileMissing, UnsafeFile
from rebase.hub.base import PinnedRepo
from rebase.hub.local import LocalHub
from rebase.hub.remote import RemoteHub
from rebase.models.adapter_reader import open_adapter
from rebase.models.model_reader import ModelReader, open_model, read_eos_ids
from rebase.schemas.repos import RepoRef
from support.safetensors_files import entry, file_bytes, write_tensors
from support.standin_hub import StandinHub

WEIGHTS = {
    "model.embed_tokens.weight": torch.arange(40.0).reshape(10, 4).bfloat16(),
    "model.layers.0.mlp.up_proj.weight": torch.ones(6, 4),
    "model.norm.weight": torch.full((4,), 2.0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repo of the local hub with a config and nothing else."""
    folder = tmp_path / "hub" / "acme" / "base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A repo of the local hub with an adapter's config and nothing else."""
    folder = tmp_path / "hub" / "acme" / "base"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    return folder


def pinned(folder: Path) -> tuple[LocalHub, PinnedRepo]:
    hub = LocalHub(folder.parents[1])
    return hub, hub.resolve(RepoRef(repo_id="acme/base"))


def shard(folder: Path, count: int = 3) -> dict[str, str]:
    """Each tensor in a file of its own, and the index that says so."""
    places = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items(), 1):
        places[name] = f"model-{number:05}-of-{count:05}.safetensors"
        write_tensors(folder / places[name], {name: tensor})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def same(reader: ModelReader) -> None:
    assert {name: info.shape for name, info in reader.infos().items()} == {
        name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()
    }
    for name, tensor in WEIGHTS.items():
        assert torch.equal(reader.read(name), tensor)
    name = "model.embed_tokens.weight"
    assert torch.equal(reader.read_rows(name, 3, 7), WEIGHTS[name][3:7])


def test_a_model_in_one_file_is_read(folder: Path) -> None:
    write_tensors(folder / "model.safetensors", WEIGHTS)
    config, reader, tokenizer = open_model(*pinned(folder))
    assert config == {"model_type": "llama"}
    assert tokenizer is None
    same(reader)


def test_a_model_in_shards_is_read(folder: Path) -> None:
    shard(folder)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    _, reader, tokenizer = open_model(*pinned(folder))
    assert tokenizer == {"model": {"vocab": {}}}
    same(reader)


def test_one_file_wins_over_an_index_as_it_does_in_transformers(folder: Path) -> None:
    shard(folder)
    write_tensors(folder / "model.safetensors", {"only": torch.ones(1)})
    assert set(open_model(*pinned(folder))[1].infos()) == {"only"}


def test_a_tensor_that_the_index_does_not_list_is_not_part_of_the_model(folder: Path) -> None:
    places = shard(folder)
    del places["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    reader = open_model(*pinned(folder))[1]
    assert "model.norm.weight" not in reader.infos()
    with pytest.raises(UnsafeFile, match=r"has no tensor 'model\.norm\.weight'"):
        reader.read("model.norm.weight")


def test_an_index_that_lies_about_a_shard_is_refused(folder: Path) -> None:
    places = shard(folder)
    places["ghost"] = places["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UnsafeFile, match=r"says that 'ghost' is in 'model-00003-of-00003\.safetensors'"):
        open_model(*pinned(folder))[1].infos()


@pytest.mark.parametrize(
    "place",
    [
        "model-00009-of-00003.safetensors",
        "../base/model-00001-of-00003.safetensors",
        "/etc/passwd",
        "pytorch_model.bin",
        "config.json",
        7,
        None,
    ],
)
def test_an_index_that_points_at_something_odd_is_refused(folder: Path, place: object) -> None:
    places: dict[str, object] = {**shard(folder), "w": place}
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UnsafeFile, match="not a safetensors file in this repo"):
        open_model(*pinned(folder))


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{", '{"a":1,"a":2}']
)
def test_an_index_without_a_map_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UnsafeFile, match=r"model\.safetensors\.index\.json"):
        open_model(*pinned(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_a_model_in_a_pickle_is_refused_with_advice(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"pickle")
    with pytest.raises(UnsafeFile, match="pickle") as caught:
        open_model(*pinned(folder))
    assert "safetensors" in (caught.value.hint or "")


def test_a_repo_without_weights_or_config_is_told_what_is_missing(folder: Path) -> None:
    with pytest.raises(FileMissing, match=r"neither model\.safetensors"):
        open_model(*pinned(folder))
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(FileMissing, match=r"not a Transformers model: it has no config\.json"):
        open_model(*pinned(folder))


@pytest.mark.parametrize("config", ["", "[]", '{"a": 1, "a": 2}', '{"a": NaN}', "\xff", "{" * 100_000])
def test_a_config_that_is_not_strict_json_is_refused_by_name(folder: Path, config: str) -> None:
    (folder / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(UnsafeFile, match=r"'config\.json' of acme/base"):
        open_model(*pinned(folder))


def test_a_config_of_absurd_size_is_refused_before_it_is_read(folder: Path) -> None:
    hub = LocalHub(folder.parents[1])
    repo = PinnedRepo("acme/base", "0" * 40, {"config.json": 2**40})
    with pytest.raises(UnsafeFile, match="1099511627776 bytes"):
        open_model(hub, repo)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('{"eos_token_id": [7, 2]}', (7, 2)),
        ('{"eos_token_id": 7}', (7,)),
        ('{"eos_token_id": ["7", true, null, 7.0, 2]}', (2,)),
        ('{"eos_token_id": null}', ()),
        ('{"eos_token_id": {"a": 1}}', ()),
        ("{}", ()),
        ("[]", ()),
        ("{", ()),
        ('{"eos_token_id": 7, "eos_token_id": 2}', ()),
        ('{"eos_token_id": 7, "note": "' + " " * 2**20 + '"}', ()),
    ],
)
def test_ends_of_generation_are_read_and_a_file_that_cannot_be_used_names_none(
    folder: Path, text: str, ids: tuple[int, ...]
) -> None:
    assert read_eos_ids(*pinned(folder)) == ()
    (folder / "generation_config.json").write_text(text)
    assert read_eos_ids(*pinned(folder)) == ids


def test_ends_of_generation_cost_one_small_file_of_a_remote_repo(folder: Path, tmp_path: Path) -> None:
    shard(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    with StandinHub() as server:
        server.add_repo("acme/base", folder)
        hub = RemoteHub(None, server.url, tmp_path / "cache", timeout_s=10, wait_s=0.01)
        repo = hub.resolve(RepoRef(repo_id="acme/base"))
        server.requests.clear()
        assert read_eos_ids(hub, repo) == (7, 2)
        asked = {request.path.partition("/resolve/")[2] for request in server.requests}
        assert f"{repo.sha}/generation_config.json" in asked
        server.requests.clear()
        assert read_eos_ids(hub, repo) == (7, 2)
        assert server.requests == []
    cached = [
        path.name for path in (tmp_path / "cache").rglob("*.*") if path.suffix in (".json", ".safetensors")
    ]
    assert cached == ["generation_config.json"]


def test_an_adapter_is_read(adapter: Path) -> None:
    write_tensors(adapter / "adapter_model.safetensors", {"w": torch.ones(2, 3)})
    config, reader = open_adapter(*pinned(adapter))
    assert config["r"] == 4
    assert torch.equal(reader.read("w"), torch.ones(2, 3))


def test_an_adapter_without_config_is_named(adapter: Path) -> None:
    write_tensors(adapter / "adapter_model.safetensors", {"w": torch.ones(2, 3)})
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(FileMissing, match=r"not a PEFT adapter: it has no adapter_config\.json"):
        open_adapter(*pinned(adapter))


def test_an_adapter_without_weights_is_named(adapter: Path) -> None:
    with pytest.raises(FileMissing, match=r"not a PEFT adapter: it has no adapter_model\.safetensors"):
        open_adapter(*pinned(adapter))


def test_an_adapter_in_a_pickle_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsafeFile, match=r"pickle file \('adapter_model\.bin'\)"):
        open_adapter(*pinned(adapter))


def test_a_pickle_beside_safetensors_is_left_alone(adapter: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    (adapter / "training_args.bin").write_bytes(b"pickle")
    write_tensors(adapter / "adapter_model.safetensors", {"w": torch.ones(1)})
    assert set(open_adapter(*pinned(adapter))[1].infos()) == {"w"}


def test_an_adapter_of_too_many_tensors_is_refused(adapter: Path) -> None:
    header = {f"t{number}": entry([0], 0, 0) for number in range(100_001)}
    (adapter / "adapter_model.safetensors").write_bytes(file_bytes(header))
    with pytest.raises(UnsafeFile, match="about 100001 tensors; at most 100000 are allowed"):
        open_adapter(*pinned(adapter))[1].infos()


def test_a_remote_model_sends_headers_and_announced_tensors_only(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    large = torch.randn(600, 1000)
    names = [f"layers.{number}" for number in range(4)]
    for number, name in enumerate(names[:2], 1):  # 2.4 MB each: larger than twice the guess for a header
        write_tensors(
            folder / f"model-{number}.safetensors", {name: large * number, f"small.{number}": torch.ones(8)}
        )
    places = {"layers.0": 1, "small.1": 1, "layers.1": 2, "small.2": 2}
    index = {"weight_map": {name: f"model-{number}.safetensors" for name, number in places.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with StandinHub() as server:
        server.add_repo("acme/base", folder)
        hub = RemoteHub(None, server.url, tmp_path / "cache", timeout_s=10, wait_s=0.01)
        _, reader, _ = open_model(hub, hub.resolve(RepoRef(repo_id="acme/base")))
        assert len(reader.infos()) == 4
        reader.declare_needed(["small.1", "layers.1"])
        server.requests.clear()
        assert reader.read("small.1").sum().item() == 8
        ranges = [request.headers["range"] for request in server.requests if "range" in request.headers]
        assert len(ranges) == 2  # once at the Hub, once at its storage
        assert torch.equal(reader.read("layers.1"), large * 2)
    cached = [path.name for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert cached == ["model-2.safetensors"]  # most of it was announced, so it came whole
