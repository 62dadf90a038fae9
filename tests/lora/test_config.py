"""adapter_config.json: what is understood like PEFT, and what is refused by name."""

from __future__ import annotations

import math
import time

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
]


def test_patterns_without_number_are_refused() -> None:
    with pytest.raises(MalformedAdapter, match="rank_pattern"):
        AdapterConfig.parse(
            {"peft_type": "LORA", "r": 4, "rank_pattern": {f"m{n}": 4 for n in range(20_000)}}
        )


def test_a_plain_config_is_read():
    config = AdapterConfig.parse(PLAIN | {"base_model_name_or_path": "acme/base", "revision": "main"})
    assert (config.rank, config.alpha, config.base_model, config.revision) == (8, 16.0, "acme/base", "main")
    assert config.compute_scale("model.layers.0.self_attn.q_proj") == 2.0


def test_rslora_divides_by_the_root_of_the_rank():
    config = AdapterConfig.parse(PLAIN | {"use_rslora": True})
    assert config.compute_scale("x") == 16 / math.sqrt(8)


def test_a_missing_base_model_name_is_no_error():
    assert AdapterConfig.parse(PLAIN).base_model is None
    assert AdapterConfig.parse(PLAIN | {"base_model_name_or_path": ""}).base_model is None


@pytest.mark.parametrize(
    "pattern",
    [
        {"q_proj": 4},
        {"model.layers.1.self_attn.q_proj": 4},
        {"^model.layers.0.*": 4, "q_proj": 2},
        {r".*\.(q|v)_proj": 4},
        {"proj": 4},
        {"layers.1.self_attn.q_proj": 3, "layers.11.self_attn.q_proj": 5},
    ],
)
def test_rank_and_alpha_patterns_match_like_in_peft(pattern):
    config = AdapterConfig.parse(PLAIN | {"rank_pattern": pattern, "alpha_pattern": pattern})
    for name in NAMES:
        expected = pattern.get(get_pattern_key(pattern.keys(), name), None)
        assert config.get_rank(name) == (expected or 8)
        assert config.compute_scale(name) == (expected or 16) / (expected or 8)


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.down_proj"]},
        {"target_modules": r".*layers\.1\..*proj"},
        {"target_modules": "q_proj"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 11]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["blocks", "h"]},
    ],
)
def test_target_modules_choose_the_modules_that_peft_chooses(change):
    config = AdapterConfig.parse(PLAIN | change)
    reference = LoraConfig(**change)
    for name in NAMES:
        expected = bool(check_target_module_exists(reference, name))
        assert config.targets_module(name, int(name.split(".")[2])) == expected, name


def test_all_linear_targets_everything():
    assert AdapterConfig.parse(PLAIN | {"target_modules": "all-linear"}).targets_module("model.layers.0.x", 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": 10**6}, "1000000"),
        ({"r": "8"}, "r should be an integer"),
        ({"r": True}, "r should be an integer"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": "big"}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern of q_proj"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern of q_proj"),
        ({"target_modules": 3}, "target_modules"),
        ({"target_modules": [3]}, "target_modules"),
        ({"layers_to_transform": ["a"]}, "layers_to_transform"),
        ({"layers_to_transform": "1"}, "layers_to_transform"),
        ({"modules_to_save": {"a": 1}}, "modules_to_save"),
        ({"use_dora": "yes"}, "use_dora"),
        ({"bias": "some"}, "bias"),
        ({"base_model_name_or_path": 7}, "base_model_name_or_path"),
        ({"peft_type": None}, "peft_type"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_field(change, named):
    with pytest.raises(MalformedAdapter, match=named):
        AdapterConfig.parse(PLAIN | change)


@pytest.mark.parametrize("raw", [None, [], "LORA", 3])
def test_a_config_that_is_no_object_is_refused(raw):
    with pytest.raises(MalformedAdapter, match="not a JSON object"):
        AdapterConfig.parse(raw)


def test_a_missing_rank_is_refused():
    with pytest.raises(MalformedAdapter, match="has no rank"):
        AdapterConfig.parse({"peft_type": "LORA"})


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "XLORA", "POLY"])
def test_other_peft_types_are_refused_by_name(kind):
    with pytest.raises(UnsupportedAdapter, match=kind):
        AdapterConfig.parse({"peft_type": kind})


@pytest.mark.parametrize(
    "change",
    [
        {"layer_replication": [[0, 2], [1, 3]]},
        {"lora_bias": True},
        {"alora_invocation_tokens": [1, 2]},
        {"use_qalora": True},
    ],
)
def test_lora_variants_with_another_update_rule_are_refused_by_key(change):
    with pytest.raises(UnsupportedAdapter, match=next(iter(change))):
        AdapterConfig.parse(PLAIN | change)


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga"])
def test_initialisations_that_moved_the_base_are_refused(start):
    with pytest.raises(UnsupportedAdapter, match=start):
        AdapterConfig.parse(PLAIN | {"init_lora_weights": start})


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_accepted(start):
    config = AdapterConfig.parse(PLAIN | {"init_lora_weights": start})
    assert (config.rank, config.initial_update) == (8, None)


@pytest.mark.parametrize(
    ("start", "update"), [("pissa", "pissa"), ("pissa_niter_16", "pissa"), ("olora", "olora")]
)
def test_initialisations_that_take_a_part_of_the_base_away_are_remembered(start, update):
    assert AdapterConfig.parse(PLAIN | {"init_lora_weights": start}).initial_update == update


def test_a_pattern_made_to_hang_the_matcher_is_refused_in_time():
    config = AdapterConfig.parse(PLAIN | {"target_modules": r"((\w|\w\w|\.)+)+q"})
    started = time.monotonic()
    with pytest.raises(MalformedAdapter, match="cannot be evaluated"):
        config.targets_module("model.layers.0.self_attn.q_proj", 0)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("pattern", ["(", "a" * 5000, "*"])
def test_a_pattern_that_is_none_is_refused(pattern):
    config = AdapterConfig.parse(PLAIN | {"target_modules": pattern})
    with pytest.raises(MalformedAdapter, match="pattern"):
        config.targets_module("model.layers.0.self_attn.q_proj", 0)
