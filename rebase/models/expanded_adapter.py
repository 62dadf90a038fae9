"""Adapters of other PEFT types than LoRA, read as the change that PEFT itself makes to each weight.

One module at a time: a small model that holds nothing but this module of the base is wrapped by PEFT with the
adapter's config and tensors, merged, and compared with the base. What comes out is exact for every type that
can be merged (AdaLoRA, LoHa, LoKr, VeRA, (IA)³, OFT, …); a rank is chosen for it as for DoRA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig, matches_suffix, matches_whole
from rebase.lora.extra_parts import StoredParameter, find_parameters
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.reader import is_headless, reject_empty_tensors, reject_unknown_tensors
from rebase.lora.source_adapter import (
    DENSE_MAX_RANK,
    AdapterContents,
    SourceAdapter,
    check_finite,
)
from rebase.lora.tensor_names import group_tensor_names, strip_wrappers
from rebase.lora.tensors import TensorReader
from rebase.lora.trained_tables import find_stored_tables
from rebase.models.weights import ModelWeights

_MAX_TENSORS = 100_000
_MAX_OPTION = 10_000_000  # no integer in a config is larger, but for seeds
_MAX_BANK = 2**28  # numbers in VB-LoRA's bank of vectors
_SEEDS = frozenset({"projection_prng_key", "random_loc_seed", "random_seed"})
_LARGEST = "largest_module"  # VeRA shares matrices of the largest width and height among the modules
_ADAPTER_TENSOR = re.compile(
    r"(?P<module>.+?)\.(lora_[ABE]|ranknum|hada_|lokr_|vera_lambda_|ia3_l|oft_|boft_|hra_u|fourierft_|shira_"
    r"|vblora_|road_|miss_|c3a_|delora_|waveft_)"
)
_SHARED_TENSOR = re.compile(r"(base_model\.)?(vera_[AB]|vblora_vector_bank)(\..+)?")


@dataclass(frozen=True, slots=True)
class _ChangedModule:
    """One module with its adapter's tensors, and whether (IA)³ scales its input instead of its output."""

    name: str
    tensors: tuple[str, ...]
    is_feedforward: bool


class ExpandedAdapter(SourceAdapter):
    """An adapter whose updates PEFT computes; they are dense and then truncated."""

    def __init__(
        self,
        modules: Mapping[Site, _ChangedModule],
        shared: tuple[str, ...],
        raw: Mapping[str, Any],
        reader: TensorReader,
        base: ModelWeights,
        contents: AdapterContents,
        max_rank: int,
    ) -> None:
        super().__init__(modules, 1, reader, base, contents, max_rank)
        self._modules = modules
        self._shared = shared
        self._raw = raw
        self._last: tuple[str, Tensor, Tensor | None] | None = None  # roles of a fused module come in turn

    def delta(self, site: Site) -> LowRank:
        """See SourceAdapter."""
        return self._truncate(site, self.exact_update(site), 1, "expansion_lost_energy")

    @property
    def dense_sites(self) -> tuple[Site, ...]:
        """All of them."""
        return self.sites

    def exact_update(self, site: Site) -> Tensor:
        """See SourceAdapter."""
        update, _ = self._expand(self._modules[site])
        return self._slice_role_rows(site, update).contiguous()

    def read_parameter(self, parameter: StoredParameter) -> Tensor:
        """Also the biases that (IA)³ rescales, which no tensor of the adapter holds."""
        if parameter.tensor_name:
            return super().read_parameter(parameter)
        assert parameter.base_name is not None
        module = next(module for module in self._modules.values() if module.name == parameter.module)
        _, change = self._expand(module)
        bias = self._base.read_tensor(parameter.base_name)
        return bias if change is None else bias + change

    def round_like(self, parameter: StoredParameter, tensor: Tensor) -> Tensor:
        """See SourceAdapter."""
        return super().round_like(parameter, tensor) if parameter.tensor_name else tensor

    def _expand(self, module: _ChangedModule) -> tuple[Tensor, Tensor | None]:
        """(change of the weight (o, i), change of the bias), float32."""
        if self._last is None or self._last[0] != module.name:
            self._last = (module.name, *self._merge(module))
        return self._last[1], self._last[2]

    def _merge(self, module: _ChangedModule) -> tuple[Tensor, Tensor | None]:
        layer = self._build_layer(module.name)
        weight = layer.weight.detach().clone()
        bias = layer.bias.detach().clone() if layer.bias is not None else None
        root = _put_in_tree(module.name, layer)
        targets = [module.name]
        if self._shared:
            rows, columns = self._get_largest_shape()
            root.add_module(_LARGEST, nn.Linear(columns, rows, bias=False))
            targets.append(_LARGEST)
        state = {_make_peft_name(name): self._read(name) for name in (*module.tensors, *self._shared)}
        try:
            wrapped = get_peft_model(root, _build_config(self._raw, module, targets))
            loaded: Any = set_peft_model_state_dict(wrapped, state)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise MalformedAdapter(
                f"PEFT cannot load the adapter's tensors of {module.name}: "
                f"{' '.join(str(exc).split())[:300]}",
                hint="Set `source` to the base model that the adapter was trained on.",
                pointer="/source",
            ) from exc
        if loaded.unexpected_keys:
            raise MalformedAdapter(f"PEFT has no place for the adapter's tensor {loaded.unexpected_keys[0]}.")
        tuner_layer: Any = wrapped.base_model.model.get_submodule(module.name)
        tuner_layer.merge()
        merged = tuner_layer.get_base_layer()
        update = (merged.weight.detach() - weight).float()
        check_finite(update, f"the update of {module.name}")
        bias_change = None if bias is None else merged.bias.detach() - bias
        return update.T if isinstance(layer, Conv1D) else update, bias_change

    def _build_layer(self, name: str) -> Any:
        """The base's module with its real weights."""
        tensor, bias_name = self._base.find_tensor(f"{name}.weight"), self._base.find_tensor(f"{name}.bias")
        assert tensor is not None  # ModelWeights has checked every site
        weight = self._base.read_tensor(tensor)
        first, second = weight.shape
        layer: Any
        if self._base.architecture.family.transposed:
            layer = Conv1D(second, first)  # type: ignore[no-untyped-call]
        else:
            layer = nn.Linear(second, first, bias=bias_name is not None)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias_name is not None:
                layer.bias.copy_(self._base.read_tensor(bias_name))
        return layer.requires_grad_(False)

    def _get_largest_shape(self) -> tuple[int, int]:
        """The largest height and width of the adapted modules."""
        shapes = []
        for module in self._modules.values():
            tensor = self._base.find_tensor(f"{module.name}.weight")
            assert tensor is not None
            rows, columns = self._base.tensor_shape(tensor)
            shapes.append((columns, rows) if self._base.architecture.family.transposed else (rows, columns))
        return max(rows for rows, _ in shapes), max(columns for _, columns in shapes)


def read_expanded_adapter(
    config: AdapterConfig,
    raw: Mapping[str, Any],
    reader: TensorReader,
    base: ModelWeights,
    *,
    max_rank: int = DENSE_MAX_RANK,
) -> SourceAdapter:
    """Check names and config, without reading tensor data. `raw`: the whole adapter_config.json.

    Raises MalformedAdapter or UnsupportedAdapter, naming the tensors.
    """
    infos = reader.infos()
    if len(infos) > _MAX_TENSORS:
        raise MalformedAdapter(f"The adapter has {len(infos)} tensors; at most {_MAX_TENSORS} are read.")
    reject_empty_tensors(infos)
    _check_sizes(raw)
    by_module: dict[str, list[str]] = {}
    shared: list[str] = []
    others: list[str] = []
    for name in sorted(infos):
        bare = strip_wrappers(name)
        if _SHARED_TENSOR.fullmatch(bare):
            shared.append(name)
        elif match := _ADAPTER_TENSOR.match(bare):
            by_module.setdefault(match["module"], []).append(name)
        else:
            others.append(name)
    groups = group_tensor_names(others, config.modules_to_save)
    parameters, unknown = find_parameters(groups, config, infos, base)
    unknown += [
        names[0] for module, names in by_module.items() if not base.architecture.find_module_sites(module)
    ]
    reject_unknown_tensors([*groups.unknown, *unknown], groups, base)
    modules = _find_modules(by_module, raw, config, base)
    if not modules:
        raise UnsupportedAdapter(
            f"The adapter ({config.peft_type}) has no tensors for a linear module that its config targets."
        )
    names = {module.name for module in modules.values()}
    contents = AdapterContents(
        warnings=(
            f"The adapter is of type {config.peft_type}; PEFT computed its change of each weight, which was "
            "written as a LoRA.",
        ),
        tables=find_stored_tables(groups, config, infos, base.architecture.hidden),
        parameters=(*parameters, *_find_rescaled_biases(modules.values(), config, base)),
        task_type=config.task_type,
        is_headless=is_headless(names, config, base),
        unknown_options=config.unknown_options,
    )
    return ExpandedAdapter(modules, tuple(shared), raw, reader, base, contents, max_rank)


def _find_modules(
    by_module: Mapping[str, list[str]], raw: Mapping[str, Any], config: AdapterConfig, base: ModelWeights
) -> dict[Site, _ChangedModule]:
    modules: dict[Site, _ChangedModule] = {}
    for name, tensors in by_module.items():
        sites = base.architecture.find_module_sites(name)
        if not config.targets_module(name, sites[0].layer):
            continue
        module = _ChangedModule(name, tuple(tensors), _is_feedforward(name, raw))
        for site in sites:
            if site in modules:
                raise MalformedAdapter(
                    f"{modules[site].name} and {name} refer to the same module of the base."
                )
            modules[site] = module
    return modules


def _find_rescaled_biases(
    modules: Iterable[_ChangedModule], config: AdapterConfig, base: ModelWeights
) -> list[StoredParameter]:
    """Biases that (IA)³ multiplies together with the output of their module."""
    if config.peft_type != "IA3":
        return []
    found = {}
    for module in modules:
        tensor = base.find_tensor(f"{module.name}.bias")
        if tensor is not None and not module.is_feedforward:
            found[module.name] = StoredParameter(module.name, "bias", "", base.tensor_shape(tensor), tensor)
    return list(found.values())


def _is_feedforward(name: str, raw: Mapping[str, Any]) -> bool:
    """PEFT's rule for `feedforward_modules`, with a limit on the time that a pattern takes."""
    patterns = raw.get("feedforward_modules") or ()
    if isinstance(patterns, str):
        return matches_whole(patterns, name)
    return any(isinstance(pattern, str) and name.endswith(pattern) for pattern in patterns)


def _check_sizes(raw: Mapping[str, Any]) -> None:
    """Raises MalformedAdapter for numbers that would make PEFT reserve unreasonable amounts of memory."""
    for key, value in raw.items():
        if isinstance(value, int) and key not in _SEEDS and abs(value) > _MAX_OPTION:
            raise MalformedAdapter(
                f"adapter_config.json: {key[:80]} is {value}, more than {_MAX_OPTION}.",
                pointer="adapter_config.json",
            )
    bank = [raw.get(key) or 1 for key in ("num_vectors", "vector_length")]
    if all(isinstance(value, int) for value in bank) and bank[0] * bank[1] > _MAX_BANK:
        raise MalformedAdapter("adapter_config.json: num_vectors × vector_length is too large.")


def _build_config(raw: Mapping[str, Any], module: _ChangedModule, targets: list[str]) -> Any:
    """PEFT's config for one module: the options as they are, but without patterns over names."""
    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[str(raw["peft_type"]).upper()]  # type: ignore[index]
    known = {field.name for field in fields(config_class) if field.init}
    options = {key: value for key, value in raw.items() if key in known and value is not None}
    for key in ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save", "revision"):
        options.pop(key, None)
    ranks = options.pop("rank_pattern", None)
    options.pop("alpha_pattern", None)
    options |= {
        "target_modules": targets,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    if "feedforward_modules" in known:
        options["feedforward_modules"] = [module.name] if module.is_feedforward else []
    if isinstance(ranks, Mapping) and options["peft_type"] == "ADALORA":
        options["rank_pattern"] = {key: value for key, value in ranks.items() if module.name in str(key)}
    options.update(_resolve_patterns(raw, module.name))
    return config_class(**{key: value for key, value in options.items() if key != "peft_type"})


def _resolve_patterns(raw: Mapping[str, Any], module: str) -> dict[str, Any]:
    """`rank_pattern` and `alpha_pattern` of LoHa and LoKr for one module, as plain `r` and `alpha`."""
    if str(raw["peft_type"]).upper() == "ADALORA":
        return {}
    resolved: dict[str, Any] = {}
    for key, option in (("rank_pattern", "r"), ("alpha_pattern", "alpha")):
        patterns = raw.get(key) or {}
        if isinstance(patterns, Mapping):
            for pattern, value in patterns.items():
                if matches_suffix(str(pattern), module):
                    resolved[option] = value
                    break
    return resolved


def _make_peft_name(name: str) -> str:
    """A tensor's name as PEFT loads it; shared tensors belong to the tuner and not to a module."""
    bare = strip_wrappers(name)
    return bare if bare.startswith("base_model.") else f"base_model.model.{bare}"


def _put_in_tree(name: str, layer: nn.Module) -> nn.Module:
    """A model that holds only this module, under its full name."""
    root = nn.Module()
    node = root
    *path, leaf = name.split(".")
    for part in path:
        child = nn.Module()
        node.add_module(part, child)
        node = child
    node.add_module(leaf, layer)
    return root
