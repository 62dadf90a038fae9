"""Trained token rows through a whole conversion, with PEFT and hand-changed models as the witnesses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import VerificationFailed
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.tiny_models import save_base, tiny_model, with_adapter
from support.tiny_repos import edit_json, perturb, tokenizer

# PEFT warns about whole tables of tied models until `ensure_weight_tying` is set.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")

OLD, NEW, SKILL = "acme/old", "acme/new", "acme/skill"
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
IDS = torch.arange(96).view(4, 24)


def make(
    hub: Path, family: str = "llama", *, old: Mapping[str, Any] = {}, new: Mapping[str, Any] = {}
) -> None:
    """Two related bases with one tokenizer."""
    save_base(hub / OLD, family, seed=0, **old)
    save_base(hub / NEW, family, seed=0, **new)
    perturb(hub / NEW, 0.02)
    for repo in (OLD, NEW):
        (hub / repo / "tokenizer.json").write_text(json.dumps(tokenizer(96)))


def train(
    hub: Path,
    change: Callable[[PeftModel], None],
    family: str = "llama",
    *,
    old: Mapping[str, Any] = {},
    **lora: Any,
) -> None:
    """An adapter of OLD; `change` does to the wrapped model what training does."""
    wrapped = with_adapter(tiny_model(family, **old), **{**LORA, **lora})
    with torch.no_grad():
        change(wrapped)
    wrapped.save_pretrained(str(hub / SKILL))
    edit_json(hub / SKILL / "adapter_config.json", base_model_name_or_path=OLD, revision=None)


def convert(hub: Path, **changes: Any) -> tuple[Report, Path]:
    body = {"adapter": {"repo_id": SKILL}, "target": {"repo_id": NEW}, "method": "copy"}
    body["output"] = {"dtype": "float32"}
    body["precheck"] = {"on_incompatible": "warn"}
    tools = Runtime(LocalHub(hub), FactorCache(hub.parent / "cache", 2**30), torch.device("cpu"))
    out = hub.parent / "out"
    outcome = run_conversion(
        plan_conversion(ConversionRequest.model_validate(body | changes), "convert"),
        tools,
        NullReporter(),
        out,
        marker=None,
    )
    assert isinstance(outcome, ConversionResult)
    return outcome.report, out


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def base(hub: Path, repo: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(hub / repo, dtype=torch.float32)
    return model.eval()


def by_hand(hub: Path, out: Path, D_in: Tensor | None, D_out: Tensor | None) -> Tensor:
    """The logits of NEW whose tables were changed in place, under the low-rank part of the result alone."""
    plain = out.parent / "plain"
    shutil.copytree(out, plain)
    model = base(hub, NEW)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # no longer tied
    with torch.no_grad():
        for table, D in ((embedding, D_in), (head, D_out)):
            if D is not None:
                table.weight += D
    tensors = load_file(plain / "adapter_model.safetensors")
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    torch.save(lora, plain / "adapter_model.bin")
    (plain / "adapter_model.safetensors").unlink()
    edit_json(
        plain / "adapter_config.json",
        modules_to_save=None,
        trainable_token_indices=...,
        ensure_weight_tying=...,
    )
    return logits(PeftModel.from_pretrained(model, str(plain)).eval())


def by_peft(hub: Path, out: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(base(hub, NEW), str(out)).eval())


def rows(changes: Mapping[int, float], width: int = 32) -> Tensor:
    """(96, width) that is zero but for some rows."""
    D = torch.zeros(96, width)
    for row, scale in changes.items():
        D[row] = scale * torch.sin(torch.arange(width) + row)
    return D


def config_of(out: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((out / "adapter_config.json").read_text())
    return config


def add_to_tokens(module: str, D: Tensor) -> Callable[[PeftModel], None]:
    def change(wrapped: PeftModel) -> None:
        wrapper = wrapped.base_model.model.get_submodule(module)
        layer = wrapper.token_adapter
        layer.trainable_tokens_delta["default"] += D[layer.token_indices["default"]]

    return change


def add_to_tables(**changes: Tensor) -> Callable[[PeftModel], None]:
    def change(wrapped: PeftModel) -> None:
        for name, module in wrapped.base_model.model.named_modules():
            last = name.rpartition(".")[2]
            if last in changes:
                module.modules_to_save["default"].weight += changes[last]

    return change


FAMILIES = {
    "llama": ("model.embed_tokens", ["q_proj", "down_proj"]),
    "gemma": ("model.embed_tokens", ["q_proj", "down_proj"]),
    "phi3": ("model.embed_tokens", ["qkv_proj", "gate_up_proj"]),
    "gpt2": ("transformer.wte", ["c_attn", "c_fc"]),
    "gpt_neox": ("gpt_neox.embed_in", ["query_key_value", "dense_4h_to_h"]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_retrained_tokens_change_the_rows_of_the_new_base_by_as_much(tmp_path: Path, family: str) -> None:
    hub, (module, modules) = tmp_path / "hub", FAMILIES[family]
    make(hub, family)
    D = rows({5: 0.5, 70: 0.3})
    train(
        hub,
        add_to_tokens(module, D),
        family,
        trainable_token_indices=[70, 5],
        target_modules=modules,
        fan_in_fan_out=family == "gpt2",
    )
    report, out = convert(hub)

    name = module.rpartition(".")[2]
    assert config_of(out)["trainable_token_indices"] == {name: [5, 70]}
    assert report.not_carried == []
    tied = base(hub, NEW).config.tie_word_embeddings
    torch.testing.assert_close(
        by_peft(hub, out), by_hand(hub, out, D, D if tied else None), atol=1e-4, rtol=1e-4
    )
    assert report.summary["token_rows.input.carried"] == 2
    assert ("token_rows.output.carried" in report.summary) is False
    assert any("vLLM" in warning for warning in report.warnings)


def test_a_whole_table_of_which_few_rows_changed_is_stored_as_single_rows(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    D_in, D_out = rows({3: 0.4}), rows({9: 0.2, 60: 0.1})
    train(
        hub,
        add_to_tables(embed_tokens=D_in, lm_head=D_out),
        modules_to_save=["embed_tokens", "lm_head"],
    )
    _, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [3], "lm_head": [9, 60]}
    assert config_of(out)["modules_to_save"] is None
    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, D_in, D_out), atol=1e-4, rtol=1e-4)


def test_a_whole_table_of_which_many_rows_changed_is_stored_whole(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    D = rows(dict.fromkeys(range(40), 0.2))
    train(hub, add_to_tables(lm_head=D), modules_to_save=["lm_head"])
    report, out = convert(hub)

    assert config_of(out)["modules_to_save"] == ["lm_head"]
    assert "trainable_token_indices" not in config_of(out)
    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, None, D), atol=1e-4, rtol=1e-4)
    assert report.summary["token_rows.output.carried"] == 40
    assert report.summary["token_rows.output.written_error"] < 1e-5


TIED = {"tie_word_embeddings": True}
FEW, MANY = rows({4: 0.4}), rows(dict.fromkeys(range(50), 0.3))
NAMES = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("old", [{}, TIED], ids=["untied source", "tied source"])
@pytest.mark.parametrize("new", [{}, TIED], ids=["untied target", "tied target"])
@pytest.mark.parametrize(
    "D_in, D_out", [(FEW, None), (None, FEW), (FEW, FEW), (MANY, None), (MANY, FEW), (MANY, MANY)]
)
def test_each_table_changes_by_what_its_own_table_changed(
    tmp_path: Path, old: dict[str, Any], new: dict[str, Any], D_in: Tensor | None, D_out: Tensor | None
) -> None:
    hub = tmp_path / "hub"
    make(hub, old=old, new=new)
    given = {name: D for name, D in zip(NAMES, (D_in, D_out), strict=True) if D is not None}
    train(hub, add_to_tables(**given), old=old, modules_to_save=list(given))
    _, out = convert(hub)

    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, D_in, D_out), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("new", [{}, TIED], ids=["untied target", "tied target"])
@pytest.mark.parametrize("D", [FEW, MANY], ids=["few", "many"])
def test_a_tied_table_that_was_trained_as_one_changes_both_tables(
    tmp_path: Path, new: dict[str, Any], D: Tensor
) -> None:
    hub = tmp_path / "hub"
    make(hub, old=TIED, new=new)
    change = add_to_tables(embed_tokens=D)  # the head shares its memory
    train(hub, change, old=TIED, modules_to_save=NAMES, ensure_weight_tying=True)
    _, out = convert(hub)

    assert ("ensure_weight_tying" in config_of(out)) is (bool(new) and D is MANY)
    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, D, D), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("new", [{}, TIED], ids=["untied target", "tied target"])
def test_an_embedding_that_was_saved_along_changes_both_tables_of_a_tied_base(
    tmp_path: Path, new: dict[str, Any]
) -> None:
    hub = tmp_path / "hub"
    make(hub, old=TIED, new=new)
    D = rows({7: 0.4})
    wrapped = with_adapter(tiny_model("llama", **TIED), **LORA)
    with torch.no_grad():
        wrapped.get_input_embeddings().weight += D
    wrapped.save_pretrained(str(hub / SKILL), save_embedding_layers=True)
    edit_json(hub / SKILL / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
    _, out = convert(hub)

    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, D, D), atol=1e-4, rtol=1e-4)


def reordered(size: int, first: int) -> dict[str, Any]:
    """The tiny tokenizer whose tokens start elsewhere: token n of one is token n − first of the other."""
    document = tokenizer(size)
    pieces = list(document["model"]["vocab"])
    order = pieces[first:] + [f"{piece}!" for piece in pieces[:first]]
    document["model"]["vocab"] = {piece: id_ for id_, piece in enumerate(order)}
    return document


def write_tokenizer(hub: Path, repo: str, document: dict[str, Any], added: Mapping[str, int] = {}) -> None:
    document["added_tokens"] = [
        {"id": id_, "content": piece, "special": True} for piece, id_ in added.items()
    ]
    (hub / repo / "tokenizer.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "lora", [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [2, 50, 90]}]
)
def test_rows_go_to_the_token_with_the_same_bytes_and_the_others_are_named(
    tmp_path: Path, lora: dict[str, Any]
) -> None:
    hub = tmp_path / "hub"
    make(hub)
    write_tokenizer(hub, NEW, reordered(96, 10))
    D = rows({2: 0.3, 50: 0.4, 90: 0.2})
    train(hub, add_to_any(D), **lora)
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [40, 80]}
    moved = torch.zeros_like(D)
    moved[40], moved[80] = D[50], D[90]
    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, moved, None), atol=1e-4, rtol=1e-4)
    assert report.summary["token_rows.input.without_counterpart"] == 1
    assert any("1 trained token row(s)" in warning and "'ac'" in warning for warning in report.warnings)
    assert report.not_carried == []


def add_to_any(D: Tensor) -> Callable[[PeftModel], None]:
    """Change the embedding, however it is trained."""

    def change(wrapped: PeftModel) -> None:
        embedding = wrapped.base_model.model.get_submodule("model.embed_tokens")
        whole = hasattr(embedding, "modules_to_save")
        (add_to_tables(embed_tokens=D) if whole else add_to_tokens("model.embed_tokens", D))(wrapped)

    return change


def test_many_rows_of_a_reordered_vocabulary_are_stored_whole(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    write_tokenizer(hub, NEW, reordered(96, 10))
    D = rows(dict.fromkeys(range(0, 96, 2), 0.2))
    train(hub, add_to_tables(embed_tokens=D), modules_to_save=["embed_tokens"])
    _, out = convert(hub)

    moved = torch.cat([D[10:], torch.zeros(10, 32)])
    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, moved, None), atol=1e-4, rtol=1e-4)


def test_an_added_token_goes_to_the_added_token_of_the_same_spelling(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    write_tokenizer(hub, OLD, tokenizer(90), {"<tool>": 90, "<gone>": 91})
    write_tokenizer(hub, NEW, tokenizer(92), {"<tool>": 93})
    D = rows({90: 0.3, 91: 0.3})
    train(hub, add_to_tokens("model.embed_tokens", D), trainable_token_indices=[90, 91])
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [93]}
    assert any("'<gone>'" in warning for warning in report.warnings)


def test_rows_that_no_tokenizer_names_keep_their_position_between_equal_vocabularies(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    for repo in (OLD, NEW):
        write_tokenizer(hub, repo, tokenizer(90))
    train(hub, add_to_tokens("model.embed_tokens", rows({5: 0.3, 93: 0.3})), trainable_token_indices=[5, 93])
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [5, 93]}
    assert any("row 93" in warning and "tokenizer" in warning for warning in report.warnings)


def test_a_target_with_fewer_rows_takes_only_the_rows_it_has(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub, new={"vocab_size": 64})
    D = rows({5: 0.3, 80: 0.3})
    train(hub, add_to_tokens("model.embed_tokens", D), trainable_token_indices=[5, 80])
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [5]}
    assert any("1 trained token row(s)" in warning for warning in report.warnings)


def test_rows_that_were_added_behind_the_base_have_no_change_to_carry(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    model = tiny_model("llama")
    model.resize_token_embeddings(100, mean_resizing=False)
    wrapped = with_adapter(model, **LORA, modules_to_save=["embed_tokens"])
    with torch.no_grad():
        wrapped.base_model.model.model.embed_tokens.modules_to_save["default"].weight[5] += 0.5
    wrapped.save_pretrained(str(hub / SKILL))
    edit_json(hub / SKILL / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [5]}
    assert any("4 trained token row(s)" in warning and "row 96" in warning for warning in report.warnings)


def _unreadable(hub: Path) -> None:
    (hub / NEW / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "changes", "reason"),
    [
        (_unreadable, {}, "no readable tokenizer.json"),
        (None, {"method": {"name": "cross_lora", "rank": 16}}, "cross_lora changes coordinates"),
    ],
)
def test_rows_that_cannot_be_carried_are_named_with_the_reason(
    tmp_path: Path, spoil: Callable[[Path], None] | None, changes: dict[str, Any], reason: str
) -> None:
    hub = tmp_path / "hub"
    make(hub)
    train(hub, add_to_tokens("model.embed_tokens", rows({5: 0.3})), trainable_token_indices=[5])
    if spoil is not None:
        spoil(hub)
    report, out = convert(hub, **changes)

    assert report.not_carried == ["model.embed_tokens"]
    assert any("model.embed_tokens" in warning and reason in warning for warning in report.warnings)
    assert any("not transferred" in caveat for caveat in report.caveats)
    assert "trainable_token_indices" not in config_of(out)
    assert reason in (out / "README.md").read_text().replace("\\", "")


def test_rows_of_another_width_are_not_carried(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub, new={"hidden_size": 64})
    train(hub, add_to_tokens("model.embed_tokens", rows({5: 0.3})), trainable_token_indices=[5])
    report, _ = convert(hub, method={"name": "cross_lora", "rank": 16})

    assert report.not_carried == ["model.embed_tokens"]
    assert any(
        "hidden size is 32 in the source base and 64 in the target" in warning for warning in report.warnings
    )


@pytest.mark.parametrize("method", ["difference", "linear", "weight_average", "ties", "prolora"])
def test_methods_that_keep_coordinates_carry_rows_as_copy_does(tmp_path: Path, method: str) -> None:
    hub = tmp_path / "hub"
    make(hub)
    D = rows({5: 0.3})
    train(hub, add_to_tokens("model.embed_tokens", D), trainable_token_indices=[5])
    _, out = convert(hub, method=method)

    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    stored = load_file(out / "adapter_model.safetensors")[name]
    expected = base(hub, NEW).get_input_embeddings().weight[[5]] + D[[5]]
    torch.testing.assert_close(stored, expected)


def test_a_table_that_was_saved_along_unchanged_adds_nothing(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    train(hub, lambda _: None)
    _, plain = convert(hub)
    plain.rename(hub.parent / "plain")
    train(hub, lambda _: None, modules_to_save=["lm_head"])
    report, out = convert(hub)

    assert (report.not_carried, report.warnings) == ([], [])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (hub.parent / "plain" / name).read_bytes()


def test_norms_in_modules_to_save_are_carried_beside_rows(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    D = rows({5: 0.3})
    train(hub, add_to_tables(lm_head=D), modules_to_save=["lm_head", "model.norm"])
    report, out = convert(hub)

    assert report.not_carried == []  # the norm was saved, but not trained
    assert config_of(out)["modules_to_save"] is None
    assert config_of(out)["trainable_token_indices"] == {"lm_head": [5]}


def test_who_asks_for_a_plain_adapter_gets_one_and_is_told_what_stayed_behind(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    train(hub, add_to_tables(lm_head=rows({5: 0.3})), modules_to_save=["lm_head"])
    report, out = convert(hub, output={"dtype": "float32", "token_rows": False})

    assert report.not_carried == ["lm_head"]
    assert any("output.token_rows" in warning for warning in report.warnings)
    assert all(".lora_" in name for name in load_file(out / "adapter_model.safetensors"))
    assert "trainable_token_indices" not in config_of(out)


def test_rows_that_do_not_fit_the_dtype_are_refused(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    train(hub, add_to_tokens("model.embed_tokens", rows({5: 1e6})), trainable_token_indices=[5])
    with pytest.raises(VerificationFailed, match="float16") as caught:
        convert(hub, output={"dtype": "float16"})
    assert caught.value.pointer == "/output/dtype"


def test_a_change_that_rounding_swallows_is_warned_about(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    train(hub, add_to_tokens("model.embed_tokens", rows({5: 1e-4})), trainable_token_indices=[5])
    report, _ = convert(hub, output={"dtype": "bfloat16"})

    assert report.summary["token_rows.input.written_error"] > 0.25
    assert any("set output.dtype to float32" in warning for warning in report.warnings)


def test_the_result_can_be_moved_on(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    D = rows({5: 0.3, 60: 0.2})
    train(hub, add_to_tokens("model.embed_tokens", D), trainable_token_indices=[5, 60])
    _, out = convert(hub)
    shutil.move(out, hub / "acme/again")
    _, back = convert(hub, adapter={"repo_id": "acme/again"}, target={"repo_id": OLD})

    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    first = load_file(hub / SKILL / "adapter_model.safetensors")[name]
    torch.testing.assert_close(load_file(back / "adapter_model.safetensors")[name], first)


def write_own_tokenizer(hub: Path, added: Mapping[str, int]) -> None:
    write_tokenizer(hub, SKILL, tokenizer(90), dict(added))


def test_a_token_that_only_the_adapters_tokenizer_names_goes_to_the_targets_token(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    write_tokenizer(hub, OLD, tokenizer(90))
    write_tokenizer(hub, NEW, tokenizer(90), {"<|tool|>": 90, "<|start|>": 91})
    D = rows({90: 0.3})
    train(hub, add_to_tokens("model.embed_tokens", D), trainable_token_indices=[90])
    write_own_tokenizer(hub, {"<|start|>": 90})
    report, out = convert(hub)

    moved = torch.zeros_like(D)
    moved[91] = D[90]
    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [91]}
    torch.testing.assert_close(by_peft(hub, out), by_hand(hub, out, moved, None), atol=1e-4, rtol=1e-4)
    assert report.not_carried == []


def test_a_new_token_that_the_target_lacks_is_named_and_lowers_the_verdict(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    write_tokenizer(hub, OLD, tokenizer(90))
    write_tokenizer(hub, NEW, tokenizer(92))
    D = rows({5: 0.3, 90: 0.3})
    train(hub, add_to_tokens("model.embed_tokens", D), trainable_token_indices=[5, 90])
    write_own_tokenizer(hub, {"<|start|>": 90})
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [5]}
    assert any("'<|start|>'" in warning for warning in report.warnings)
    assert "new_tokens_lost" in {reason.code for reason in report.precheck.reasons}
    assert report.precheck.verdict != "compatible"


def test_rows_of_an_adapter_that_grew_its_base_are_written_as_trained(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub, new={"vocab_size": 99})
    write_tokenizer(hub, OLD, tokenizer(96))
    write_tokenizer(hub, NEW, tokenizer(96), {"<|tool|>": 96, "<|start|>": 97})
    model = tiny_model("llama")
    model.resize_token_embeddings(97, mean_resizing=False)
    wrapped = with_adapter(model, **LORA, modules_to_save=["embed_tokens"])
    trained = torch.linspace(-1, 1, 32)
    with torch.no_grad():
        wrapped.base_model.model.model.embed_tokens.modules_to_save["default"].weight[96] = trained
    wrapped.save_pretrained(str(hub / SKILL))
    edit_json(hub / SKILL / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
    write_tokenizer(hub, SKILL, tokenizer(96), {"<|start|>": 96})
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [97]}
    written = load_file(out / "adapter_model.safetensors")
    (row,) = (tensor for name, tensor in written.items() if "trainable_tokens_delta" in name)
    torch.testing.assert_close(row[0], trained)
    assert report.not_carried == []


def test_a_tokenizer_that_extends_the_targets_goes_beside_the_result(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    for repo in (OLD, NEW):
        write_tokenizer(hub, repo, tokenizer(90))
    train(hub, add_to_tokens("model.embed_tokens", rows({93: 0.3})), trainable_token_indices=[93])
    write_own_tokenizer(hub, {"<|start|>": 93})
    (hub / SKILL / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": "x.Y"}, "a": 1})
    )
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [93]}
    assert (out / "tokenizer.json").read_bytes() == (hub / SKILL / "tokenizer.json").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"a": 1}  # nothing that selects code
    assert any("'<|start|>'" in warning for warning in report.warnings)


def test_a_tokenizer_that_does_not_belong_to_the_adapters_base_is_not_used(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    make(hub)
    train(hub, add_to_tokens("model.embed_tokens", rows({5: 0.3})), trainable_token_indices=[5])
    write_tokenizer(hub, SKILL, reordered(96, 10))
    report, out = convert(hub)

    assert config_of(out)["trainable_token_indices"] == {"embed_tokens": [5]}
    assert any("own tokenizer.json was not used" in warning for warning in report.warnings)
