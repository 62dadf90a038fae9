"""PEFT and a forward pass as witnesses of every weight-space method.

The pipeline moves an adapter between two Llamas and writes it; PEFT loads it on the target. The same target
with W + ΔW in its weights, ΔW in float64 from the method's formula, has to give the same logits.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.hub.local import LocalHub
from rebase.methods.registry import METHODS
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from support.formulas import FORMULAS, Matrix, SiteProblem
from support.tiny_models import save_adapter, save_base, tiny_model, token_batch
from support.tiny_repos import edit_json, perturb, tokenizer

SOURCE, SIBLING, WIDER, ADAPTER = "acme/old", "acme/new", "acme/wider", "acme/skill"
ROLES = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
SCALE = 1.5  # α/r of the adapter

ACROSS: list[dict[str, Any]] = [
    {"name": "copy", "pad": True},
    {"name": "cross_lora", "rank": 12},
    {"name": "cross_lora", "rank": 12, "norm": "preserve"},
    {"name": "cross_lora", "rank": 12, "orthogonalize": True},
    {"name": "cross_lora", "rank": 12, "alignment": "index"},
]
WITHIN: list[dict[str, Any]] = [
    *ACROSS[1:],
    {"name": "copy"},
    {"name": "cross_lora", "rank": 12, "alignment": "projection"},
    {"name": "cross_lora", "rank": 12, "alignment": "projection", "orthogonalize": True},
    {"name": "cross_lora", "rank": 8, "sweep": [4, 16]},
    {"name": "difference", "rank": 6},
    {"name": "difference", "rank": 32, "gamma": -0.5},
    {"name": "linear"},
    {"name": "linear", "side": "input", "ridge": 0.1},
    {"name": "prolora", "energy": 0.8},
    {"name": "prolora", "energy": 0.8, "perp": "residual"},
    {"name": "ties", "rank": 6, "density": 0.3},
    {"name": "weight_average", "rank": 6},
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a sibling of the same shape, a wider and deeper base, and an adapter of the first."""
    root = tmp_path_factory.mktemp("hub")
    save_base(root / SOURCE, "llama", seed=0)
    save_base(root / SIBLING, "llama", seed=0)
    perturb(root / SIBLING, 0.3)
    save_base(
        root / WIDER,
        "llama",
        seed=5,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
    )
    for repo in (SOURCE, SIBLING, WIDER):
        (root / repo / "tokenizer.json").write_text(json.dumps(tokenizer(96)))
    modules = [role for roles in ROLES.values() for role in roles]
    save_adapter(root / ADAPTER, tiny_model("llama", seed=0), r=4, lora_alpha=6, target_modules=modules)
    edit_json(root / ADAPTER / "adapter_config.json", base_model_name_or_path=SOURCE, revision=None)
    return root


# These read a pool or a text: see test_anchor_pools.py, test_turned_base.py, test_distill_pipeline.py,
# test_cast.py.
OTHERS = {"anchor_ridge", "activation", "geometric", "cast", "distill"}


def test_no_method_that_reads_weights_alone_is_left_out() -> None:
    assert {str(raw["name"]) for raw in WITHIN} == set(FORMULAS) == set(METHODS) - OTHERS


@pytest.mark.parametrize(
    ("raw", "target"),
    [(raw, SIBLING) for raw in WITHIN] + [(raw, WIDER) for raw in ACROSS],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value[5:],
)
def test_the_target_with_our_adapter_computes_what_the_formula_says(
    raw: dict[str, Any], target: str, hub: Path, tmp_path: Path
) -> None:
    folder = moved(hub, raw, target, tmp_path)
    tokens = token_batch()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(hub / target, dtype=torch.float64).eval()
        alone = model(tokens).logits
        adapted = PeftModel.from_pretrained(model, str(folder)).double().eval()
        served = adapted(tokens).logits
        merged = adapted.merge_and_unload()(tokens).logits
        model = AutoModelForCausalLM.from_pretrained(hub / target, dtype=torch.float64).eval()
        for name, delta in wanted(hub, raw, target).items():
            model.get_parameter(name).add_(torch.from_numpy(delta))
        reference = model(tokens).logits
    effect = (reference - alone).norm()
    assert effect > 0.01 * alone.norm()
    assert (served - reference).norm() < 1e-4 * effect
    assert (merged - reference).norm() < 1e-4 * effect


def moved(hub: Path, raw: dict[str, Any], target: str, work: Path) -> Path:
    """The adapter that the pipeline writes, in float32."""
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": ADAPTER},
            "target": {"repo_id": target},
            "method": raw,
            "output": {"dtype": "float32"},
            "precheck": {"on_incompatible": "warn"},
        }
    )
    tools = Runtime(LocalHub(hub), FactorCache(work / "cache", 2**30), torch.device("cpu"))
    outcome = run_conversion(
        plan_conversion(request, "convert"), tools, NullReporter(), work / "moved", marker=None
    )
    assert isinstance(outcome, ConversionResult)
    return work / "moved"


def wanted(hub: Path, raw: dict[str, Any], target: str) -> dict[str, Matrix]:
    """Parameter name → ΔW by the formula, at every site of the target."""
    source_layers = 2
    configs = [json.loads((hub / repo / "config.json").read_text()) for repo in (SOURCE, target)]
    weights = [arrays(hub / repo / "model.safetensors") for repo in (SOURCE, target)]
    adapter = arrays(hub / ADAPTER / "adapter_model.safetensors")
    layers = configs[1]["num_hidden_layers"]
    fed_by = [math.floor((t + 0.5) * source_layers / layers) for t in range(layers)]
    deltas = {}
    for t, s in enumerate(fed_by):
        seen = [rows(weights[0], configs[0], s), rows(weights[1], configs[1], t)]
        for block, role in ((block, role) for block, roles in ROLES.items() for role in roles):
            names = [f"model.layers.{layer}.{block}.{role}" for layer in (s, t)]
            A, B = (adapter[f"base_model.model.{names[0]}.lora_{half}.weight"] for half in "AB")
            problem = SiteProblem(
                W_s=weights[0][f"{names[0]}.weight"],
                W_t=weights[1][f"{names[1]}.weight"],
                D=SCALE * B @ A / fed_by.count(s),
                r=4,
                reads=(seen[0][role][0], seen[1][role][0]),
                writes=(seen[0][role][1], seen[1][role][1]),
                options=raw,
            )
            deltas[f"{names[1]}.weight"] = FORMULAS[raw["name"]](problem)
    return deltas


def arrays(path: Path) -> dict[str, Matrix]:
    """A safetensors file in float64."""
    return {name: tensor.double().numpy() for name, tensor in load_file(path).items()}


def rows(weights: dict[str, Matrix], config: dict[str, Any], layer: int) -> dict[str, tuple[Matrix, Matrix]]:
    """What every role of a layer reads and writes when the embedding of each token is its input."""
    E = weights["model.embed_tokens.weight"]
    W = {
        role: weights[f"model.layers.{layer}.{block}.{role}.weight"]
        for block, roles in ROLES.items()
        for role in roles
    }

    def norm(name: str) -> Matrix:
        size = np.sqrt((E**2).mean(1, keepdims=True) + config["rms_norm_eps"])
        return np.asarray(E / size * weights[f"model.layers.{layer}.{name}.weight"])

    attention, mlp = norm("input_layernorm"), norm("post_attention_layernorm")
    values = (attention @ W["v_proj"].T).reshape(len(E), config["num_key_value_heads"], -1)
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    mixed = np.repeat(values, groups, axis=1).reshape(len(E), -1)
    gate = mlp @ W["gate_proj"].T
    inner = gate / (1 + np.exp(-gate)) * (mlp @ W["up_proj"].T)
    read = dict.fromkeys(("q_proj", "k_proj", "v_proj"), attention) | dict.fromkeys(
        ("gate_proj", "up_proj"), mlp
    )
    both = {role: (x, x @ W[role].T) for role, x in read.items()}
    return both | {"o_proj": (mixed, E), "down_proj": (inner, E)}
