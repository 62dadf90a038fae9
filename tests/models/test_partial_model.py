"""What is checked between building an adapter and publishing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rebase.conversion.verify import check_forward, find_changed_layers
from rebase.errors import UnsupportedModel, VerificationFailed
from rebase.lora.low_rank import LowRank, Role, Site
from rebase.models.empty_model import build_model_config, check_structure
from rebase.models.partial_model import PartialModel
from support.tiny_models import (
    TINY_CONFIGS,
    FolderReader,
    save_adapter,
    save_base,
    tiny_model,
    with_adapter,
)

_MODULES = {
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj"],
}
_CPU = torch.device("cpu")


def _pair(tmp_path: Path, model_type: str, **overrides: object) -> tuple[Path, Path]:
    base = save_base(tmp_path / "base", model_type, **overrides)
    modules = _MODULES.get(model_type, ["q_proj", "down_proj"])
    adapter = save_adapter(
        tmp_path / "adapter",
        tiny_model(model_type, **overrides),
        r=4,
        target_modules=modules,
        fan_in_fan_out=model_type == "gpt2",
    )
    return base, adapter


def _config(base: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((base / "config.json").read_text())
    return config


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in load_file(adapter / "adapter_model.safetensors").items()}


@pytest.mark.parametrize("model_type", sorted(TINY_CONFIGS))
def test_an_adapter_that_peft_wrote_passes_on_its_own_base_whole_and_as_a_slice(
    tmp_path: Path, model_type: str
) -> None:
    layers = {"n_layer": 4} if model_type == "gpt2" else {"num_hidden_layers": 4}
    base, adapter = _pair(tmp_path, model_type, **layers)
    reader = FolderReader.of(base)

    assert check_structure(_config(base), adapter, _shapes(adapter)) == len(_shapes(adapter))
    whole = check_forward(_config(base), reader, adapter, [0, 1, 2, 3], _CPU)
    part = check_forward(_config(base), reader, adapter, [1, 2, 3], _CPU, whole_model_bytes=0)

    assert whole.scope == "whole model"
    assert part.scope.startswith("real weights of layers 1, 2")
    assert whole.logit_change > 0
    assert part.logit_change > 0


def test_the_whole_model_pass_agrees_with_transformers_and_peft(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ids = torch.arange(1, 33)[None] % 96
    with torch.no_grad():
        without = model(ids).logits
        with_adapter = PeftModel.from_pretrained(model, str(adapter)).eval()(ids).logits
    expected = float((with_adapter - without).norm() / without.norm())

    assert check_forward(
        _config(base), FolderReader.of(base), adapter, [0, 1], _CPU
    ).logit_change == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "lora",
    [
        {"trainable_token_indices": {"embed_tokens": [7, 1500, 2900]}},
        {"trainable_token_indices": {"embed_tokens": [2900], "lm_head": [5, 2000]}},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_tying:UserWarning")
def test_trained_token_rows_pass_whole_and_as_a_slice_that_holds_them(
    tmp_path: Path, lora: dict[str, object], tied: bool
) -> None:
    of_base: dict[str, object] = {"vocab_size": 3000, "tie_word_embeddings": tied}
    base = save_base(tmp_path / "base", "llama", **of_base)
    wrapped = with_adapter(tiny_model("llama", **of_base), r=4, target_modules=["q_proj"], **lora)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
            elif "lora_" not in name and parameter.requires_grad:
                parameter.add_(1.0)
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    adapter, reader = tmp_path / "adapter", FolderReader.of(base)

    assert check_structure(_config(base), adapter, _shapes(adapter)) == len(_shapes(adapter))
    whole = check_forward(_config(base), reader, adapter, [0, 1], _CPU)
    part = check_forward(_config(base), reader, adapter, [0, 1], _CPU, whole_model_bytes=0)
    assert whole.logit_change > 0
    assert part.logit_change > 0


@pytest.mark.parametrize("whole_model_bytes", [2**30, 0])
def test_the_text_part_of_a_larger_model_is_run(tmp_path: Path, whole_model_bytes: int) -> None:
    vision = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 16, "image_size": 28}
    config = AutoConfig.for_model(
        "gemma3",
        text_config=TINY_CONFIGS["gemma3_text"] | {"num_hidden_layers": 4},
        vision_config=vision | {"patch_size": 14},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "base")
    names = [f"model.language_model.layers.{layer}.self_attn.q_proj" for layer in range(4)]
    lora = {"r": 4, "target_modules": names, "trainable_token_indices": {"embed_tokens": [5]}}
    adapter = save_adapter(tmp_path / "adapter", model, **lora)
    raw, reader = _config(tmp_path / "base"), FolderReader.of(tmp_path / "base")

    assert check_structure(raw, adapter, _shapes(adapter)) == 9
    check = check_forward(raw, reader, adapter, [1, 2, 3], _CPU, whole_model_bytes=whole_model_bytes)
    assert check.logit_change > 0


@pytest.mark.parametrize("whole_model_bytes", [2**30, 0])
def test_a_config_may_leave_out_the_size_of_the_vocabulary(tmp_path: Path, whole_model_bytes: int) -> None:
    """As the text part of Gemma 3 with pictures does."""
    default = AutoConfig.for_model("gemma").vocab_size
    base = save_base(tmp_path / "base", "gemma", vocab_size=default, hidden_size=8)
    model = tiny_model("gemma", vocab_size=default, hidden_size=8)
    adapter = save_adapter(tmp_path / "adapter", model, r=4, target_modules=["q_proj"])
    raw = {key: value for key, value in _config(base).items() if key != "vocab_size"}

    reader = FolderReader.of(base)
    check = check_forward(raw, reader, adapter, [0, 1], _CPU, whole_model_bytes=whole_model_bytes)
    assert check.logit_change > 0


def test_a_slice_keeps_the_values_of_rows_it_moves(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama", vocab_size=3000)
    lora = {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [2900, 7]}}
    adapter = save_adapter(tmp_path / "adapter", tiny_model("llama", vocab_size=3000), **lora)
    cut = PartialModel.for_adapter((1,), 3000, adapter)

    place = cut.find_retrained_tokens(adapter)["embed_tokens"][0]
    table = dict(cut.iter_weights(FolderReader.of(base)))["model.embed_tokens.weight"]
    stored = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert (place, table.shape[0]) == (1023, 1024)
    assert torch.equal(table[place], stored[2900])
    assert torch.equal(table[:1023], stored[:1023])


def test_a_tensor_without_a_place_in_the_target_is_named(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")
    shapes = _shapes(adapter)
    shapes["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = (4, 32)

    with pytest.raises(VerificationFailed, match=r"layers\.9\.self_attn\.q_proj"):
        check_structure(_config(base), adapter, shapes)


def test_a_tensor_of_the_wrong_shape_is_named(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")
    shapes = _shapes(adapter)
    name = next(iter(shapes))
    shapes[name] = (4, 33)

    with pytest.raises(VerificationFailed, match="33"):
        check_structure(_config(base), adapter, shapes)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}, file)

    with pytest.raises(VerificationFailed, match="changes nothing"):
        check_forward(_config(base), FolderReader.of(base), adapter, [0, 1], _CPU)


def test_an_adapter_that_breaks_the_forward_pass_is_refused(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: t + float("inf") for name, t in tensors.items()}, file)

    with pytest.raises(VerificationFailed, match="not finite"):
        check_forward(_config(base), FolderReader.of(base), adapter, [0, 1], _CPU)


def test_a_target_that_lacks_a_tensor_is_not_run_on_random_numbers(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, base / "model.safetensors")

    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight"):
        check_forward(_config(base), FolderReader.of(base), adapter, [0, 1], _CPU)


def test_a_target_whose_vocabulary_contradicts_its_weights_is_refused_by_tensor(tmp_path: Path) -> None:
    base, adapter = _pair(tmp_path, "llama")

    with pytest.raises(UnsupportedModel, match=r"embed_tokens|lm_head"):
        check_forward({**_config(base), "vocab_size": 5000}, FolderReader.of(base), adapter, [0, 1], _CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_act": "nonsense"},
        {"rope_scaling": {"type": "linear"}},
        {"pad_token_id": 10**6},
        {"max_position_embeddings": "many"},
    ],
)
def test_a_target_that_transformers_cannot_build_is_refused_by_name(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    base, adapter = _pair(tmp_path, "llama")

    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        check_structure({**_config(base), **wrong}, adapter, _shapes(adapter))


@pytest.mark.parametrize(
    "how",
    [
        {
            "attn_implementation": "stranger/kernel"
        },  # code from a repo, where the package `kernels` is installed
        {"_attn_implementation": "stranger/kernel"},
        {"experts_implementation": "stranger/kernel"},
        {"dtype": "int8"},
        {"return_dict": False},
        {"_name_or_path": ["a", "list"]},
    ],
)
def test_a_config_does_not_decide_what_code_runs_the_target(tmp_path: Path, how: dict[str, object]) -> None:
    base, adapter = _pair(tmp_path, "llama")
    config = {**_config(base), **how}

    check_structure(config, adapter, _shapes(adapter))
    assert check_forward(config, FolderReader.of(base), adapter, [0, 1], _CPU).logit_change > 0


def test_a_nested_config_does_not_decide_it_either() -> None:
    text = {"model_type": "gemma3_text", "dtype": "int8"}

    config = build_model_config({"model_type": "gemma3", "text_config": text})

    assert config.get_text_config().dtype is None


def test_the_forward_pass_runs_layers_whose_update_is_not_zero() -> None:
    zero, update = LowRank(torch.zeros(4, 1), torch.ones(1, 4)), LowRank(torch.ones(4, 1), torch.ones(1, 4))
    deltas = {Site(layer, Role.Q): update if layer > 1 else zero for layer in range(4)}

    assert find_changed_layers(deltas) == [2, 3]
    assert find_changed_layers({Site(0, Role.Q): zero}) == [0]


def test_an_architecture_that_transformers_does_not_ship_is_refused_without_running_its_code(
    tmp_path: Path,
) -> None:
    _, adapter = _pair(tmp_path, "llama")
    config = {"model_type": "my_own", "auto_map": {"AutoModelForCausalLM": "modeling.My"}}

    with pytest.raises(UnsupportedModel, match="my_own"):
        check_structure(config, adapter, {})
