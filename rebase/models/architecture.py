"""A model family bound to one config: sizes, module names, and the rows of a fused module for each role."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rebase.errors import UnsupportedModel
from rebase.lora.low_rank import Role, Site
from rebase.models.families import FAMILIES, NESTED_TEXT_PREFIXES, Family

_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_MAX_LAYERS = 1024  # ten times the deepest published model; anything above is a bogus config

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family with one model's sizes. `root`: the module prefix in the model that transformers builds."""

    family: Family
    root: str
    hidden: int
    layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    activation: str

    @property
    def model_type(self) -> str:
        """The family's name, `gemma3_text` for both Gemma 3 forms."""
        return self.family.model_type

    @property
    def headless_root(self) -> str:
        """The module prefix in the model without a head, as `AutoModel` builds it."""
        return self.root.partition(".")[2]

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles this family has, in layout order; GPT-2 and GPT-NeoX have no gate."""
        return tuple(role for roles in self.family.layout.values() for role in roles)

    @property
    def is_gated(self) -> bool:
        """Whether the MLP computes act(gate x) * (up x) rather than act(up x)."""
        return Role.GATE in self.roles

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, layer by layer."""
        return tuple(Site(layer, role) for layer in range(self.layers) for role in self.roles)

    def get_submodule_name(self, role: Role) -> str:
        """The module inside a layer that computes this role, such as `self_attn.qkv_proj`."""
        for part, roles in self.family.layout.items():
            if role in roles:
                return part
        raise UnsupportedModel(f"{self.model_type} models have no {role.value}.")

    def get_module_name(self, site: Site) -> str:
        """The module's full name in the causal language model, such as `model.layers.3.mlp.up_proj`."""
        return f"{self.root}{self.get_layer_name(site.layer)}.{self.get_submodule_name(site.role)}"

    def get_layer_name(self, layer: int) -> str:
        """A layer's name without any prefix."""
        return f"{self.family.layers}.{layer}"

    def find_module_sites(self, name: str) -> tuple[Site, ...]:
        """The sites that a module computes, under any known prefix; empty for other modules."""
        match = re.fullmatch(rf"(.*?){self.family.layers}\.(\d{{1,4}})\.(.+)", name)
        if match is None or match[1] not in {self.root, *self.family.prefixes}:
            return ()
        layer = int(match[2])
        roles = self.family.layout.get(match[3], ()) if layer < self.layers else ()
        return tuple(Site(layer, role) for role in roles)

    def list_fused_roles(self, role: Role) -> tuple[Role, ...]:
        """All roles of the module that computes this role, in the module's order."""
        return self.family.layout[self.get_submodule_name(role)]

    def out_features(self, role: Role) -> int:
        """Rows of the role's weight."""
        match role:
            case Role.Q:
                return self.n_heads * self.head_dim
            case Role.K | Role.V:
                return self.n_kv_heads * self.head_dim
            case Role.GATE | Role.UP:
                return self.intermediate
            case _:
                return self.hidden

    def in_features(self, role: Role) -> int:
        """Columns of the role's weight."""
        match role:
            case Role.O:
                return self.n_heads * self.head_dim
            case Role.DOWN:
                return self.intermediate
            case _:
                return self.hidden

    def get_output_rows(self, role: Role) -> slice | Tensor | None:
        """Output rows of its module that belong to this role: None = all, a slice, or indices (per head)."""
        fused_roles = self.list_fused_roles(role)
        if len(fused_roles) == 1:
            return None
        if not self.family.per_head:
            start = sum(self.out_features(other) for other in fused_roles[: fused_roles.index(role)])
            return slice(start, start + self.out_features(role))
        grid = torch.arange(self.n_heads * len(fused_roles) * self.head_dim)
        return grid.view(self.n_heads, len(fused_roles), self.head_dim)[:, fused_roles.index(role)].reshape(
            -1
        )

    def activate(self, x: Tensor) -> Tensor:
        """Apply the MLP's activation. Raises UnsupportedModel for an unknown one."""
        if self.activation not in _ACTIVATIONS:
            raise UnsupportedModel(f"The MLP activation {self.activation!r} is not supported.")
        return _ACTIVATIONS[self.activation](x)


def get_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture for a config.json.

    Raises UnsupportedModel for unknown model types, quantized or mixture-of-experts models, invalid sizes.
    """
    model_type = config.get("model_type")
    _reject_quantized(config)
    root = None
    if isinstance(model_type, str) and model_type in NESTED_TEXT_PREFIXES:
        root = NESTED_TEXT_PREFIXES[model_type]
        text_config = config.get("text_config")
        config = text_config if isinstance(text_config, Mapping) else {}
        model_type = config.get("model_type", f"{model_type}_text")
    _reject_quantized(config)
    _reject_experts(config)
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedModel(
            f"The model_type {str(model_type)[:80]!r} is not supported.",
            hint=(f"Supported: {', '.join(FAMILIES)}."),
        )
    return _bind_config(family, family.root if root is None else root, config)


def _bind_config(family: Family, root: str, config: Mapping[str, Any]) -> Architecture:
    keys = family.keys
    hidden, heads = _get_size(family, config, keys.hidden), _get_size(family, config, keys.heads)
    kv_heads = _get_size(family, config, keys.kv_heads, heads)
    head_dim = _get_size(family, config, keys.head_dim, hidden // heads)
    layers = _get_size(family, config, keys.layers)
    if heads % kv_heads or layers > _MAX_LAYERS:
        raise UnsupportedModel(
            f"config.json contradicts itself: {layers} layers, {heads} heads and {kv_heads} key-value "
            "heads do not fit together."
        )
    eps = _get_value(family, config, keys.eps)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1:
        raise UnsupportedModel(f"config.json: {keys.eps} should be a small number.")
    return Architecture(
        family=family,
        root=root,
        hidden=hidden,
        layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_get_size(family, config, keys.intermediate, 4 * hidden),
        vocab=_get_size(family, config, keys.vocab, 0, minimum=0),
        eps=float(eps),
        activation=str(_get_value(family, config, keys.activation)),
    )


def _get_value(family: Family, config: Mapping[str, Any], key: str) -> Any:
    return config[key] if key in config else family.defaults.get(key)


def _get_size(
    family: Family, config: Mapping[str, Any], key: str | None, default: int | None = None, minimum: int = 1
) -> int:
    """An integer from the config or the family's defaults, or `otherwise` if that is null or absent."""
    value = None if key is None else _get_value(family, config, key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value < 2**31:
        raise UnsupportedModel(f"config.json: {key} should be a positive integer.")
    return value


def _reject_quantized(config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if not quantization:
        return
    name = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    raise UnsupportedModel(
        f"The base model is quantized ({str(name or 'unnamed method')[:40]}), which is not supported.",
        hint="Use the unquantized repo of the same model.",
    )


def _reject_experts(config: Mapping[str, Any]) -> None:
    for key in _EXPERT_KEYS:
        if config.get(key):
            raise UnsupportedModel(
                f"Mixture-of-experts models are not supported yet: config.json has {key}, so the modules "
                "`mlp.experts` of each layer have no dense counterpart.",
                hint="Use dense base models on both sides.",
            )
