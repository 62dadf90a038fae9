"""Finds a model's architecture by looking at what transformers builds from its config, without weights.

The decoder layers are the list of modules with the most linear weights in the text model. In each layer, a
linear module gets one of the seven roles by its name, its place and its shape; every other one is known by
its path, so that it can be copied to the same module of an equal model. Layers may differ: mixtures of
experts, and hybrids in which only some layers have attention.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import ModuleRole, Role, RoleName
from rebase.models.architecture import Architecture, FoundModules
from rebase.models.empty_model import build_empty_model
from rebase.models.families import Family, NormKind

_MAX_LAYERS = 1024
_MAX_EXPERTS = 4096
_CACHED_CONFIGS = 16
_EXPERT_DIMENSIONS = 3  # expert, output, input

# Parts of a path that say where a module stands. Cross-attention, state-space and linear attention are no
# attention in the sense of the roles.
_ATTENTION = re.compile(r"(^|\.)(self_attn|self_attention|attention|attn|self_att|self)(\.|$)")
_MLP = re.compile(r"(^|\.)(mlp|ffn|feed_forward|feedforward|mlp_block|intermediate|output)(\.|$)")
_ELSEWHERE = re.compile(
    r"(cross|encoder_attn|crossattention|expert|mamba|linear_attn|indexer|router|per_layer)"
)
_NOT_TEXT = re.compile(r"(^|\.)(vision|visual|audio|speech|image|encoder_|multi_modal|mm_)")

_LEAVES: Mapping[Role, frozenset[str]] = {
    Role.Q: frozenset({"q_proj", "query", "query_proj", "q_lin", "Wq", "project_q", "q"}),
    Role.K: frozenset({"k_proj", "key", "key_proj", "k_lin", "Wk", "project_k", "k"}),
    Role.V: frozenset({"v_proj", "value", "value_proj", "v_lin", "Wv", "project_v", "v"}),
    Role.O: frozenset({"o_proj", "out_proj", "dense", "c_proj", "attention_out", "out_lin", "wo"}),
    Role.GATE: frozenset({"gate_proj", "w1"}),
    Role.UP: frozenset({"up_proj", "fc1", "c_fc", "fc_in", "dense_h_to_4h", "w3"}),
    Role.DOWN: frozenset({"down_proj", "fc2", "c_proj", "fc_out", "dense_4h_to_h", "w2"}),
}
# BERT's layers name both halves of the MLP `dense`, and so the output of attention.
_BERT_PATHS: Mapping[str, Role] = {
    "attention.output.dense": Role.O,
    "intermediate.dense": Role.UP,
    "output.dense": Role.DOWN,
}
_FUSED_LEAVES: Mapping[str, tuple[Role, ...]] = {
    "qkv_proj": (Role.Q, Role.K, Role.V),
    "query_key_value": (Role.Q, Role.K, Role.V),
    "c_attn": (Role.Q, Role.K, Role.V),
    "gate_up_proj": (Role.GATE, Role.UP),
}
# How the rows of a fused attention module are ordered cannot be seen from its shape. Types that are not named
# here keep such a module whole.
_CONCATENATED = frozenset({"gpt_bigcode", "phi4_multimodal", "openai-gpt", "phimoe"})
_GROUPED = frozenset({"bloom", "falcon", "persimmon"})
_ATTENTION_NORMS = (
    "input_layernorm",
    "ln_1",
    "self_attn_layer_norm",
    "attention_norm",
    "operator_norm",
    "norm1",
)
_MLP_NORMS = (
    "pre_feedforward_layernorm",
    "pre_ff_layernorm",
    "post_attention_layernorm",
    "ln_2",
    "final_layer_norm",
    "ffn_norm",
    "norm2",
)
_POST_NORM_TYPES = frozenset({"olmo2", "olmo3", "exaone4"})  # `post_attention_layernorm` follows attention


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """Build the config's model without weights and look at it. Raises UnsupportedModel."""
    _check_counts(config)
    return _find_cached(json.dumps(config, sort_keys=True, default=str))


@lru_cache(maxsize=_CACHED_CONFIGS)
def _find_cached(text: str) -> Architecture:
    config: dict[str, Any] = json.loads(text)
    model = build_empty_model(config)
    text_config = model.config.get_text_config()
    layers_name, layers = _find_layers(model)
    embedding_name = _find_name(model, model.get_input_embeddings())
    root = _find_common_root(layers_name, embedding_name)
    heads = _get_int(text_config, "num_attention_heads", 1)
    kv_heads = _get_int(text_config, "num_key_value_heads", heads)
    if getattr(text_config, "model_type", "") == "falcon" and not text_config.new_decoder_architecture:
        kv_heads = 1 if text_config.multi_query else heads
    hidden = _get_int(text_config, "hidden_size", model.get_input_embeddings().weight.shape[1])
    head_dim = _get_int(text_config, "head_dim", max(hidden // max(heads, 1), 1))
    finder = _RoleFinder(str(config.get("model_type")), hidden, heads, kv_heads, head_dim)
    layouts: list[dict[str, tuple[RoleName, ...]]] = []
    shapes: dict[str, tuple[int, int]] = {}
    expert_shapes: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(layers):
        modules = {
            name: _get_shape(module) for name, module in layer.named_modules() if name and _is_linear(module)
        }
        layouts.append(finder.assign(modules))
        prefix = f"{layers_name.removeprefix(root)}.{index}"
        shapes |= {f"{prefix}.{name}": shape for name, shape in modules.items()}
        expert_shapes |= {
            f"{prefix}.{name}": tuple(parameter.shape)
            for name, parameter in layer.named_parameters()
            if parameter.dim() == _EXPERT_DIMENSIONS
        }
    first = layers[0]
    family = Family(
        model_type=str(config.get("model_type")),
        layout=layouts[0],
        root=root,
        prefixes=_list_prefixes(root),
        layers=layers_name.removeprefix(root),
        embedding=embedding_name.removeprefix(root),
        attention_norm=_find_norm_name(first, _ATTENTION_NORMS),
        mlp_norm=_find_norm_name(first, _MLP_NORMS),
        norm_kind=_find_norm_kind(first, str(config.get("model_type"))),
        scale_embeddings=hasattr(model.get_input_embeddings(), "embed_scale"),
        transposed=any(isinstance(module, Conv1D) for module in first.modules()),
        per_group=str(config.get("model_type")) in _GROUPED,
    )
    up_rows = [
        o
        for layout in layouts
        for part, roles in layout.items()
        if roles == (Role.UP,)
        for name, (o, _) in shapes.items()
        if name.endswith(f".{part}")
    ]
    return Architecture(
        family=family,
        root=root,
        hidden=hidden,
        layers=len(layers),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=up_rows[0] if up_rows else _get_int(text_config, "intermediate_size", 4 * hidden),
        vocab=model.get_input_embeddings().weight.shape[0],
        eps=_find_eps(first),
        activation=str(
            getattr(text_config, "hidden_act", None) or getattr(text_config, "hidden_activation", None)
        ),
        found=FoundModules(
            tuple(layouts),
            shapes,
            expert_shapes,
            tuple(name for name, _ in model.named_modules() if name),
        ),
    )


def _check_counts(config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for numbers of modules that no model has: each is built, if without weights."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_counts(value)
        elif isinstance(value, int) and any(word in key for word in ("layer", "depth", "expert", "block")):
            limit = _MAX_LAYERS if "expert" not in key else _MAX_EXPERTS
            is_count = not key.endswith(("_size", "_dim", "_id", "_token", "_tok"))
            if is_count and value > limit:
                raise UnsupportedModel(f"config.json: {key} is {value}; at most {limit} are built.")


class _RoleFinder:
    """Assigns roles to the linear modules of one layer."""

    def __init__(self, model_type: str, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None:
        self._model_type = model_type
        self._hidden = hidden
        self._fused_rows = (heads + 2 * kv_heads) * head_dim

    def assign(self, modules: Mapping[str, tuple[int, int]]) -> dict[str, tuple[RoleName, ...]]:
        """Module → its roles. A role is given only if exactly one module can have it, and only together with
        those that it is used with: q, k and v; up and down."""
        candidates: dict[Role, list[str]] = {}
        fused: dict[str, tuple[Role, ...]] = {}
        for name, shape in modules.items():
            roles = self._find_roles(name, shape)
            if len(roles) > 1:
                fused[name] = roles
            for role in roles:
                candidates.setdefault(role, []).append(name)
        chosen = {role: names[0] for role, names in candidates.items() if len(names) == 1}
        for group in ((Role.Q, Role.K, Role.V), (Role.UP, Role.DOWN)):
            if not all(role in chosen for role in group):
                for role in group:
                    chosen.pop(role, None)
        if Role.UP not in chosen:
            chosen.pop(Role.GATE, None)
        layout: dict[str, tuple[RoleName, ...]] = {}
        for name in modules:
            roles = fused.get(name) or tuple(role for role, owner in chosen.items() if owner == name)
            is_whole = bool(roles) and all(chosen.get(role) == name for role in roles)
            layout[name] = roles if is_whole else (ModuleRole(name),)
        return layout

    def _find_roles(self, name: str, shape: tuple[int, int]) -> tuple[Role, ...]:
        if _ELSEWHERE.search(name):
            return ()
        o, i = shape
        leaf = name.rpartition(".")[2]
        if name in _BERT_PATHS:
            return (_BERT_PATHS[name],)
        if (roles := _FUSED_LEAVES.get(leaf)) is not None:
            return roles if self._is_known_fusion(roles, name, shape) else ()
        is_attention, is_mlp = bool(_ATTENTION.search(name)), bool(_MLP.search(name))
        for role, leaves in _LEAVES.items():
            if leaf not in leaves:
                continue
            in_place = is_attention if role in (Role.Q, Role.K, Role.V, Role.O) else not is_attention
            if not is_attention and not is_mlp and "." in name:
                in_place = False
            reads = i == self._hidden or role in (Role.O, Role.DOWN)
            writes = o == self._hidden or role not in (Role.O, Role.DOWN)
            if in_place and reads and writes:
                return (role,)
        return ()

    def _is_known_fusion(self, roles: tuple[Role, ...], name: str, shape: tuple[int, int]) -> bool:
        o, i = shape
        if i != self._hidden:
            return False
        if Role.GATE in roles:
            return o % 2 == 0 and bool(_MLP.search(name)) and not _ATTENTION.search(name)
        return self._model_type in _CONCATENATED | _GROUPED and o == self._fused_rows


def _find_layers(model: Any) -> tuple[str, list[Any]]:
    """(name, modules) of the list with the most linear weights in the text model."""
    text_model = _get_text_model(model)
    best: tuple[int, str, list[Any]] = (0, "", [])
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0 or _NOT_TEXT.search(name):
            continue
        if text_model is not None and not name.startswith(text_model):
            continue
        weights = sum(_count(part) for part in module.modules() if _is_linear(part))
        is_inside = best[1] and name.startswith(f"{best[1]}.")
        if weights > best[0] and not is_inside:
            best = (weights, name, list(module))
    if not best[1]:
        raise UnsupportedModel(
            f"No decoder layers with linear modules were found in {type(model).__name__}.",
            hint="Adapters of this architecture cannot be converted.",
        )
    if len(best[2]) > _MAX_LAYERS:
        raise UnsupportedModel(f"config.json asks for {len(best[2])} layers; at most {_MAX_LAYERS} are read.")
    return best[1], best[2]


def _get_text_model(model: Any) -> str | None:
    """Name of the decoder inside a model that also sees or hears."""
    try:
        decoder = model.get_decoder()
    except (AttributeError, NotImplementedError):
        return None
    if not any(isinstance(part, nn.ModuleList) for part in decoder.modules()):
        return None  # the output head of some models is called so too
    return _find_name(model, decoder) or None


def _find_name(model: Any, module: Any) -> str:
    return next((name for name, part in model.named_modules() if part is module), "")


def _find_common_root(layers: str, embedding: str) -> str:
    """The longest common path of both, with a dot at the end."""
    shared = []
    for first, second in zip(layers.split(".")[:-1], embedding.split(".")[:-1], strict=False):
        if first != second:
            break
        shared.append(first)
    return "".join(f"{part}." for part in shared)


def _list_prefixes(root: str) -> tuple[str, ...]:
    """What stands before the layers in checkpoints and adapters: the root, parts of it, and the forms in
    which models that also see or hear were saved."""
    parts = root.split(".")
    tails = tuple(".".join(parts[start:]) for start in range(1, len(parts)))
    nested = ("language_model.model.", "model.language_model.", "language_model.")
    return tuple(dict.fromkeys((root, *tails, *(nested if root.startswith("model.") else ()))))


def _find_norm_name(layer: Any, names: tuple[str, ...]) -> str:
    children = dict(layer.named_children())
    return next((name for name in names if name in children), "")


def _find_norm_kind(layer: Any, model_type: str) -> NormKind | None:
    """What the norm before attention computes, tried on numbers; None if it is none of the known kinds."""
    name = _find_norm_name(layer, _ATTENTION_NORMS)
    if not name or model_type in _POST_NORM_TYPES:
        return NormKind.NONE
    norm = copy.deepcopy(dict(layer.named_children())[name])
    weight = getattr(norm, "weight", None)
    if weight is None or weight.dim() != 1:
        return None
    norm = norm.to_empty(device="cpu").float()
    x = torch.linspace(-1.0, 2.0, weight.shape[0])[None]
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.zero_()
        try:
            at_zero = norm(x)
            norm.weight.fill_(1.0)
            at_one = norm(x)
        except (RuntimeError, TypeError, ValueError):
            return None
    rms = x / x.square().mean().sqrt()
    layer_norm = (x - x.mean()) / x.std(correction=0)
    if torch.allclose(at_one, layer_norm, atol=1e-3) and hasattr(norm, "bias") and norm.bias is not None:
        return NormKind.LAYER
    if torch.allclose(at_zero, rms, atol=1e-3):
        return NormKind.RMS_PLUS_ONE
    return NormKind.RMS if torch.allclose(at_one, rms, atol=1e-3) else None


def _find_eps(layer: Any) -> float:
    for module in layer.modules():
        for name in ("variance_epsilon", "eps"):
            value = getattr(module, name, None)
            if isinstance(value, float):
                return value
    return 1e-6


def _is_linear(module: Any) -> bool:
    """A module that PEFT can put a LoRA on. Some routers are linear layers that return a tuple."""
    weight = getattr(module, "weight", None)
    is_matrix = isinstance(weight, torch.Tensor) and weight.dim() == 2
    return isinstance(module, nn.Linear | Conv1D) and is_matrix and "Router" not in type(module).__name__


def _get_shape(module: Any) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def _count(module: Any) -> int:
    count: int = module.weight.numel()
    return count


def _get_int(config: Any, name: str, default: int) -> int:
    try:
        value = getattr(config, name, None)
    except Exception:  # some configs refuse a size that differs between layers, each with an error of its own
        return default
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
