"""The table of model families, one row per `model_type`. To add an architecture, add a row and a test case.

Names are relative: a layer's modules are found under `{prefix}{layers}.{index}.`, where `prefix` is whatever
the checkpoint or adapter uses (`model.`, `transformer.`, nothing, …). Defaults are those of the transformers
configuration classes, because a published `config.json` may omit values that equal the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from rebase.lora.low_rank import Role, RoleName


class NormKind(StrEnum):
    """How a layer normalises the inputs of its linear modules."""

    RMS = "rms"  # x / rms(x) · w
    RMS_PLUS_ONE = "rms_plus_one"  # x / rms(x) · (1 + w), Gemma
    LAYER = "layer"  # (x − mean) / std · w + b
    NONE = "none"  # not at all: the layer normalises its outputs instead


@dataclass(frozen=True, slots=True)
class ConfigKeys:
    """The config.json keys under which a family stores its sizes."""

    hidden: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    intermediate: str = "intermediate_size"
    vocab: str = "vocab_size"
    eps: str = "rms_norm_eps"
    activation: str = "hidden_act"


@dataclass(frozen=True, slots=True)
class Family:
    """How one family is laid out. `layout`: module inside a layer → the roles it computes, in order."""

    model_type: str
    layout: Mapping[str, tuple[RoleName, ...]]
    keys: ConfigKeys = field(default_factory=ConfigKeys)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # config key → transformers' default
    root: str = "model."  # prefix in the causal language model as transformers builds it
    prefixes: tuple[str, ...] = ("model.", "", "language_model.model.", "model.language_model.")
    layers: str = "layers"
    embedding: str = "embed_tokens"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    norm_kind: NormKind | None = NormKind.RMS  # None: of another kind, which is not computed here
    scale_embeddings: bool = False  # rows are multiplied by √hidden before layer 0
    transposed: bool = False  # weights stored (in, out): GPT-2's Conv1D
    # Fused rows are ordered [key-value head, (its q…, k, v), head_dim] instead of [q | k | v].
    per_group: bool = False


Q, K, V, O = Role.Q, Role.K, Role.V, Role.O  # noqa: E741
GATE, UP, DOWN = Role.GATE, Role.UP, Role.DOWN

_LLAMA_LAYOUT = MappingProxyType(
    {
        "self_attn.q_proj": (Q,),
        "self_attn.k_proj": (K,),
        "self_attn.v_proj": (V,),
        "self_attn.o_proj": (O,),
        "mlp.gate_proj": (GATE,),
        "mlp.up_proj": (UP,),
        "mlp.down_proj": (DOWN,),
    }
)
_GEMMA_KEYS = ConfigKeys(activation="hidden_activation")
_GELU_TANH = "gelu_pytorch_tanh"
_RMS_DEFAULTS = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}

_LLAMA = Family("llama", _LLAMA_LAYOUT, defaults=_RMS_DEFAULTS)
_GEMMA2 = Family(
    "gemma2",
    _LLAMA_LAYOUT,
    keys=_GEMMA_KEYS,
    defaults={
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "hidden_activation": _GELU_TANH,
    },
    mlp_norm="pre_feedforward_layernorm",
    norm_kind=NormKind.RMS_PLUS_ONE,
    scale_embeddings=True,
)

_ALL_FAMILIES = (
    _LLAMA,
    replace(_LLAMA, model_type="mistral", defaults=_RMS_DEFAULTS | {"num_key_value_heads": 8}),
    replace(_LLAMA, model_type="qwen2", defaults=_RMS_DEFAULTS | {"num_key_value_heads": 32}),
    replace(
        _LLAMA, model_type="qwen3", defaults=_RMS_DEFAULTS | {"num_key_value_heads": 32, "head_dim": 128}
    ),
    replace(
        _GEMMA2,
        model_type="gemma",
        keys=ConfigKeys(),
        defaults={
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "rms_norm_eps": 1e-6,
            "hidden_act": _GELU_TANH,
        },
        mlp_norm="post_attention_layernorm",
    ),
    _GEMMA2,
    replace(_GEMMA2, model_type="gemma3_text"),
    Family(
        "phi3",
        {
            "self_attn.qkv_proj": (Q, K, V),
            "self_attn.o_proj": (O,),
            "mlp.gate_up_proj": (GATE, UP),
            "mlp.down_proj": (DOWN,),
        },
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "silu"},
        keys=ConfigKeys(head_dim=None),
    ),
    Family(
        "gpt2",
        {"attn.c_attn": (Q, K, V), "attn.c_proj": (O,), "mlp.c_fc": (UP,), "mlp.c_proj": (DOWN,)},
        keys=ConfigKeys(
            hidden="n_embd",
            layers="n_layer",
            heads="n_head",
            kv_heads=None,
            head_dim=None,
            intermediate="n_inner",
            eps="layer_norm_epsilon",
            activation="activation_function",
        ),
        defaults={"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_inner": None},
        root="transformer.",
        prefixes=("transformer.", ""),
        layers="h",
        embedding="wte",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        norm_kind=NormKind.LAYER,
        transposed=True,
    ),
    Family(
        "gpt_neox",
        {
            "attention.query_key_value": (Q, K, V),
            "attention.dense": (O,),
            "mlp.dense_h_to_4h": (UP,),
            "mlp.dense_4h_to_h": (DOWN,),
        },
        keys=ConfigKeys(kv_heads=None, head_dim=None, eps="layer_norm_eps"),
        defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu"},
        root="gpt_neox.",
        prefixes=("gpt_neox.", ""),
        embedding="embed_in",
        norm_kind=NormKind.LAYER,
        per_group=True,
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.model_type: row for row in _ALL_FAMILIES})

# Models whose text model is described by `text_config`: outer model_type → module prefix of the text model.
NESTED_TEXT_PREFIXES: Mapping[str, str] = MappingProxyType({"gemma3": "model.language_model."})
