"""Every form of an adapter changes the new base's logits as the original changes those of the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import rebase
from rebase.conversion.pipeline import ConversionResult
from rebase.errors import MalformedAdapter, RequestInvalid, RevisionNotFound
from support.tiny_models import save_adapter, save_base, tiny_model, token_batch
from support.tiny_repos import edit_json

OLD, NEW, LORA = "acme/old", "acme/new", "acme/library"
SHA = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two bases of the same function under two names, and an adapter of the first one."""
    hub = tmp_path / "hub"
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REBASE_HUB_DIR", str(hub))
    monkeypatch.setenv("REBASE_DEVICE", "cpu")
    for repo in (OLD, NEW):
        save_base(hub / repo, "llama", seed=0)
    edit_json(hub / NEW / "config.json", max_position_embeddings=63)
    save_adapter(
        hub / LORA, tiny_model("llama", seed=0), r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]
    )
    edit_json(hub / LORA / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
    return hub


def convert(adapter: str, out: Path, target: str = NEW, **changes: Any) -> ConversionResult:
    return rebase.convert(adapter, target, method="copy", out=out, output={"dtype": "float32"}, **changes)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(token_batch()).logits
    return output


def logits_with(base: Path, adapter: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(load(base), str(adapter)))


def test_an_adapter_in_a_subfolder_is_converted(hub: Path, tmp_path: Path) -> None:
    original = logits_with(hub / OLD, hub / LORA)
    (hub / LORA).rename(hub / "moving")
    (hub / LORA / "runs").mkdir(parents=True)
    (hub / "moving").rename(hub / LORA / "runs" / "sql")
    result = convert(f"{LORA}:runs/sql", tmp_path / "out")
    torch.testing.assert_close(logits_with(hub / NEW, tmp_path / "out"), original)
    assert (result.report.adapter.repo_id, result.report.adapter.subfolder) == (LORA, "runs/sql")
    assert result.report.warnings == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# library/runs/sql on new" in card
    assert f"`{LORA}@{result.report.adapter.sha}:runs/sql`" in card
    pasted = convert(f"https://huggingface.co/{LORA}/tree/main/runs/sql", tmp_path / "pasted")
    assert pasted.report == result.report


def test_a_base_in_a_subfolder_is_read_and_the_report_says_how_to_load_it(hub: Path, tmp_path: Path) -> None:
    original = logits_with(hub / OLD, hub / LORA)
    (hub / "acme/bases").mkdir()
    (hub / NEW).rename(hub / "acme/bases/new")
    result = convert(LORA, tmp_path / "out", "acme/bases:new")
    torch.testing.assert_close(logits_with(hub / "acme/bases/new", tmp_path / "out"), original)
    assert result.report.target.subfolder == "new"
    assert "load the base with that subfolder" in " ".join(result.report.warnings)


def test_shards_are_converted_as_one_file_is(hub: Path, tmp_path: Path) -> None:
    original = logits_with(hub / OLD, hub / LORA)
    tensors = load_file(hub / LORA / "adapter_model.safetensors")
    (hub / LORA / "adapter_model.safetensors").unlink()
    index = {
        name: f"adapter_model-{1 + number % 2:05}-of-00002.safetensors" for number, name in enumerate(tensors)
    }
    for shard in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == shard}, hub / LORA / shard)
    (hub / LORA / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    convert(LORA, tmp_path / "out")
    torch.testing.assert_close(logits_with(hub / NEW, tmp_path / "out"), original)


def test_a_config_saved_by_a_windows_editor_is_read(hub: Path, tmp_path: Path) -> None:
    original = logits_with(hub / OLD, hub / LORA)
    config = hub / LORA / "adapter_config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b"\n", b"\r\n"))
    convert(str(hub / LORA), tmp_path / "out")
    torch.testing.assert_close(logits_with(hub / NEW, tmp_path / "out"), original)


def test_an_adapter_of_mlx_lm_adds_what_mlx_lm_adds(hub: Path, tmp_path: Path) -> None:
    scale, rank = 2.5, 4
    generator = torch.Generator().manual_seed(3)
    model, tensors = load(hub / OLD), {}
    for layer in range(2):
        for module, o, i in (("self_attn.q_proj", 32, 32), ("mlp.down_proj", 32, 48)):
            name = f"model.layers.{layer}.{module}"
            lora_a = torch.randn(i, rank, generator=generator) * 0.1
            lora_b = torch.randn(rank, o, generator=generator) * 0.1
            tensors |= {f"{name}.lora_a": lora_a, f"{name}.lora_b": lora_b}
            with torch.no_grad():  # x Wᵀ + scale · (x · lora_a) · lora_b
                model.get_submodule(name).weight += scale * (lora_a @ lora_b).T  # type: ignore[operator]
    folder = tmp_path / "adapters"
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0},
        "model": OLD,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    convert(str(folder), tmp_path / "out")
    torch.testing.assert_close(logits_with(hub / NEW, tmp_path / "out"), logits(model))


def test_a_negative_alpha_subtracts(hub: Path, tmp_path: Path) -> None:
    edit_json(hub / LORA / "adapter_config.json", lora_alpha=-8)
    original = logits_with(hub / OLD, hub / LORA)
    convert(LORA, tmp_path / "out")
    torch.testing.assert_close(logits_with(hub / NEW, tmp_path / "out"), original)


def test_an_alpha_of_zero_is_said_to_do_nothing(hub: Path, tmp_path: Path) -> None:
    edit_json(hub / LORA / "adapter_config.json", lora_alpha=0)
    with pytest.raises(MalformedAdapter, match="lora_alpha is 0, so the adapter does nothing"):
        convert(LORA, tmp_path / "out")


def cache_snapshot(hub: Path, repo: str) -> Path:
    """The repo as huggingface_hub lays its download cache out: links to blobs."""
    cached = hub.parent / "cache" / f"models--{repo.replace('/', '--')}"
    snapshot = cached / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (cached / "blobs").mkdir()
    for number, path in enumerate(sorted((hub / repo).iterdir())):
        blob = cached / "blobs" / f"{number:040}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_snapshots_of_the_download_cache_keep_the_names_of_their_repos(hub: Path, tmp_path: Path) -> None:
    original = logits_with(hub / OLD, hub / LORA)
    adapter, source, target = (cache_snapshot(hub, repo) for repo in (LORA, OLD, NEW))
    result = convert(str(adapter), tmp_path / "out", str(target), source=str(source))
    torch.testing.assert_close(logits_with(hub / NEW, tmp_path / "out"), original)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (NEW, SHA)
    report = result.report
    assert [(repo.repo_id, repo.sha) for repo in (report.adapter, report.source, report.target)] == [
        (LORA, SHA),
        (OLD, SHA),
        (NEW, SHA),
    ]
    assert report.warnings == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert f'base_model: "{NEW}"' in card
    assert str(tmp_path) not in card


def test_a_base_that_the_adapter_names_by_a_path_in_a_cache_is_found_on_the_hub(
    hub: Path, tmp_path: Path
) -> None:
    path = f"/root/.cache/huggingface/hub/models--acme--old/snapshots/{SHA}"
    edit_json(hub / LORA / "adapter_config.json", base_model_name_or_path=path)
    report = convert(LORA, tmp_path / "out", source=OLD).report
    assert report.warnings == []
    with pytest.raises(RevisionNotFound, match="acme/old"):
        convert(LORA, tmp_path / "never")


@pytest.mark.parametrize(
    "path",
    [
        f"/x/models--acme--old/snapshots/{SHA}/../../y",
        f"/x/models--acme--old/snapshots/{SHA}/a\x00",
        "a\x00b",
    ],
)
def test_a_path_that_leads_elsewhere_is_no_base(hub: Path, tmp_path: Path, path: str) -> None:
    edit_json(hub / LORA / "adapter_config.json", base_model_name_or_path=path)
    with pytest.raises(MalformedAdapter, match="is not a Hub repo id"):
        convert(LORA, tmp_path / "out")
    assert convert(LORA, tmp_path / "named", source=OLD).report.warnings


def test_a_warning_about_another_base_shows_no_alias_and_no_path_of_this_machine(
    hub: Path, tmp_path: Path
) -> None:
    edit_json(hub / LORA / "adapter_config.json", base_model_name_or_path="/home/me/models/llama")
    by_name = convert(LORA, tmp_path / "one", source=OLD).report.warnings
    assert by_name == [f"The adapter names a folder 'llama' as its base; '{OLD}' was used."]
    by_folder = convert(LORA, tmp_path / "two", source=str(hub / OLD)).report.warnings
    assert by_folder == [
        "The adapter names a folder 'llama' as its base; the folder given as source was used."
    ]


def test_the_same_commit_as_a_folder_and_as_a_snapshot_is_not_two_bases(hub: Path, tmp_path: Path) -> None:
    snapshot = cache_snapshot(hub, OLD)
    with pytest.raises(RequestInvalid, match="same base"):
        convert(LORA, tmp_path / "out", str(snapshot), source=str(snapshot))
