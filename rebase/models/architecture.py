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
from rebase.lora.low_rank import Role, RoleName, Site
from rebase.models.families import FAMILIES, NESTED_TEXT_PREFIXES, Family

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
class FoundModules:
    """Modules found by looking at a model.

    `layouts`: for each layer, module → its roles. `shapes`: each linear module's (o, i), by its name from the
    layers on. `expert_shapes`: parameters that hold one matrix for each expert, in the same way.
    `module_names`: all modules of the model, with the root.
    """

    layouts: tuple[Mapping[str, tuple[RoleName, ...]], ...]
    shapes: Mapping[str, tuple[int, int]]
    expert_shapes: Mapping[str, tuple[int, ...]]
    module_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family with one model's sizes. `root`: the module prefix in the model that transformers builds.

    `found`: what was seen of a model that the table of families does not describe; its layers may differ.
    """

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
    found: FoundModules | None = None

    @property
    def model_type(self) -> str:
        """The family's name, `gemma3_text` for both Gemma 3 forms."""
        return self.family.model_type

    @property
    def headless_root(self) -> str:
        """The module prefix in the model without a head, as `AutoModel` builds it."""
        return self.root.partition(".")[2]

    @property
    def roles(self) -> tuple[RoleName, ...]:
        """The roles that any layer has, in layout order; GPT-2 and GPT-NeoX have no gate."""
        layers = range(self.layers) if self.found is not None else range(1)
        return tuple(
            dict.fromkeys(
                role for layer in layers for roles in self.get_layout(layer).values() for role in roles
            )
        )

    @property
    def is_gated(self) -> bool:
        """Whether the MLP computes act(gate x) * (up x) rather than act(up x)."""
        return Role.GATE in self.roles

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site, layer by layer."""
        return tuple(
            Site(layer, role)
            for layer in range(self.layers)
            for roles in self.get_layout(layer).values()
            for role in roles
        )

    def get_layout(self, layer: int) -> Mapping[str, tuple[RoleName, ...]]:
        """Module inside this layer → the roles it computes, in order."""
        return self.family.layout if self.found is None else self.found.layouts[layer]

    def get_submodule_name(self, site: Site) -> str:
        """The module inside its layer that computes this site, such as `self_attn.qkv_proj`."""
        for part, roles in self.get_layout(site.layer).items():
            if site.role in roles:
                return part
        raise UnsupportedModel(f"Layer {site.layer} of {self.model_type} models has no {site.role.value}.")

    def get_module_name(self, site: Site) -> str:
        """The module's full name in the causal language model, such as `model.layers.3.mlp.up_proj`."""
        return f"{self.root}{self.get_layer_name(site.layer)}.{self.get_submodule_name(site)}"

    def get_layer_name(self, layer: int) -> str:
        """A layer's name without any prefix."""
        return f"{self.family.layers}.{layer}"

    def find_module_sites(self, name: str) -> tuple[Site, ...]:
        """The sites that a module computes, under any known prefix; empty for other modules."""
        match = re.fullmatch(rf"(.*?){re.escape(self.family.layers)}\.(\d{{1,4}})\.(.+)", name)
        if match is None or match[1] not in {self.root, *self.family.prefixes}:
            return ()
        layer = int(match[2])
        roles = self.get_layout(layer).get(match[3], ()) if layer < self.layers else ()
        return tuple(Site(layer, role) for role in roles)

    def find_expert_parameters(self, module: str) -> dict[str, tuple[int, ...]]:
        """Parameters of a module, under any known prefix, with one matrix for each expert: name → shape."""
        if self.found is None:
            return {}
        prefixes = sorted({self.root, *self.family.prefixes}, key=len, reverse=True)
        prefix = next(prefix for prefix in prefixes if module.startswith(prefix) or prefix == "")
        rest = f"{module.removeprefix(prefix)}."
        return {
            name.removeprefix(rest): shape
            for name, shape in self.found.expert_shapes.items()
            if name.startswith(rest) and "." not in name.removeprefix(rest)
        }

    def has_expert_parameter(self, ending: str) -> bool:
        """Does a parameter with one matrix for each expert end with these parts of a name?"""
        shapes = self.found.expert_shapes if self.found is not None else {}
        return any(name.endswith(f".{ending}") for name in shapes)

    def list_fused_roles(self, site: Site) -> tuple[RoleName, ...]:
        """All roles of the module that computes this site, in the module's order."""
        return self.get_layout(site.layer)[self.get_submodule_name(site)]

    def module_shape(self, layer: int, part: str) -> tuple[int, int]:
        """(o, i) of a whole module."""
        if self.found is not None:
            return self.found.shapes[f"{self.get_layer_name(layer)}.{part}"]
        roles = self.family.layout[part]
        return sum(self.out_features(role) for role in roles), self.in_features(roles[0])

    def shape(self, site: Site) -> tuple[int, int]:
        """(o, i) of the site's weight."""
        if self.found is None:
            return self.out_features(site.role), self.in_features(site.role)
        o, i = self.module_shape(site.layer, self.get_submodule_name(site))
        return (o if len(self.list_fused_roles(site)) == 1 else self.out_features(site.role)), i

    def out_features(self, role: RoleName) -> int:
        """Rows of the role's weight, by the config's sizes."""
        match role:
            case Role.Q:
                return self.n_heads * self.head_dim
            case Role.K | Role.V:
                return self.n_kv_heads * self.head_dim
            case Role.GATE | Role.UP:
                return self.intermediate
            case _:
                return self.hidden

    def in_features(self, role: RoleName) -> int:
        """Columns of the role's weight, by the config's sizes."""
        match role:
            case Role.O:
                return self.n_heads * self.head_dim
            case Role.DOWN:
                return self.intermediate
            case _:
                return self.hidden

    def get_output_rows(self, site: Site) -> slice | Tensor | None:
        """Output rows of its module that belong to this site: None = all, a slice, or indices."""
        fused_roles = self.list_fused_roles(site)
        if len(fused_roles) == 1:
            return None
        index = fused_roles.index(site.role)
        if not self.family.per_group:
            start = sum(self.out_features(other) for other in fused_roles[:index])
            return slice(start, start + self.out_features(site.role))
        # For each key-value head: the query heads that share it, then the key, then the value.
        shared = self.n_heads // self.n_kv_heads
        grid = torch.arange(self.n_kv_heads * (shared + 2) * self.head_dim)
        grid = grid.view(self.n_kv_heads, shared + 2, self.head_dim)
        rows = grid[:, :shared] if index == 0 else grid[:, shared + index - 1]
        return rows.reshape(-1)

    def activate(self, x: Tensor) -> Tensor:
        """Apply the MLP's activation. Raises UnsupportedModel for an unknown one."""
        if self.activation not in _ACTIVATIONS:
            raise UnsupportedModel(f"The MLP activation {self.activation!r} is not supported.")
        return _ACTIVATIONS[self.activation](x)


def get_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture for a config.json: by the table of families, or by looking at the model that
    transformers builds.

    Raises UnsupportedModel for model types that transformers does not know or in which no layers are found,
    quantized models, invalid sizes.
    """
    model_type = config.get("model_type")
    root = None
    text_config = config
    if isinstance(model_type, str) and model_type in NESTED_TEXT_PREFIXES:
        root = NESTED_TEXT_PREFIXES[model_type]
        nested = config.get("text_config")
        text_config = nested if isinstance(nested, Mapping) else {}
        model_type = text_config.get("model_type", f"{model_type}_text")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        # Here, because looking needs the classes of this file.
        from rebase.models.found_architecture import find_architecture

        return find_architecture(config)
    return _bind_config(family, family.root if root is None else root, text_config)


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
