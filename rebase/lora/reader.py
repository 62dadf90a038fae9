"""Reads a source adapter as low-rank updates, one site at a time.

ΔW = s·B·A (LoRA, Hu et al. 2021), s = α/r or α/√r (rsLoRA). The roles of a fused module share A and slice B.
DoRA (Liu et al. 2024) rescales rows: W' = (m/‖W + s·B·A‖) (W + s·B·A), norms per output row; its update
W' − W has full rank, so it is truncated where 99.9 % of its energy is kept, and the lost share is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.extra_parts import (
    LeftBehind,
    find_parameters,
    find_vocabulary_loras,
    take_expert_loras,
    take_other_loras,
)
from rebase.lora.linalg import factorize
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.source_adapter import (
    DENSE_MAX_RANK,
    AdapterContents,
    SourceAdapter,
    check_finite,
)
from rebase.lora.tensor_names import ModuleTensors, TensorGroups, group_tensor_names
from rebase.lora.tensors import TensorInfo, TensorReader
from rebase.lora.trained_tables import find_stored_tables

if TYPE_CHECKING:
    from rebase.models.weights import ModelWeights

MAX_TENSORS = 100_000  # 1,000 layers of 7 modules with magnitudes have 21,000
_DTYPES = frozenset({"F32", "F16", "BF16"})
_MAX_LISTED = 5  # how many offending names an error lists


@dataclass(frozen=True, slots=True)
class _LoraModule:
    """One module with LoRA: validated tensor names and shapes."""

    name: str
    A: str
    B: str
    magnitude: str | None
    rank: int
    scale: float


class LoraAdapter(SourceAdapter):
    """LoRA, with rsLoRA, DoRA, and the initialisations that take a part of the base away."""

    def __init__(
        self,
        modules: Mapping[Site, _LoraModule],
        initial_update: Literal["pissa", "olora"] | None,
        reader: TensorReader,
        base: ModelWeights,
        contents: AdapterContents,
        max_rank: int,
    ) -> None:
        rank = max(module.rank for module in modules.values())
        super().__init__(modules, rank, reader, base, contents, max_rank)
        self._modules = modules
        self._initial_update = initial_update

    def delta(self, site: Site) -> LowRank:
        """See SourceAdapter."""
        module = self._modules[site]
        if module.magnitude is not None:
            return self._truncate(site, self.exact_update(site), module.rank, "dora_lost_energy")
        return self._read_factors(site)

    @property
    def dense_sites(self) -> tuple[Site, ...]:
        """Those with DoRA."""
        return tuple(site for site in self.sites if self._modules[site].magnitude is not None)

    def exact_update(self, site: Site) -> Tensor:
        """See SourceAdapter."""
        factors = self._read_factors(site)
        if self._modules[site].magnitude is None:
            return factors.B @ factors.A
        return self._compute_dora_update(site, factors)

    def _read_factors(self, site: Site) -> LowRank:
        module = self._modules[site]
        A = self._read(module.A)
        B = self._slice_role_rows(site, self._read(module.B)) * module.scale
        check_finite(B, f"{module.B} times its scale {module.scale:g}")
        factors = LowRank(B.contiguous(), A)
        if self._initial_update is None:
            return factors
        start = self._compute_initial_update(site, module)
        return LowRank.cat([factors, LowRank(-start.B, start.A)])

    def _compute_initial_update(self, site: Site, module: _LoraModule) -> LowRank:
        """What PEFT took from the weight W (o, i) when training began: the leading part of its SVD (PiSSA,
        Meng et al. 2024), or s·Q·R of its QR decomposition (OLoRA, Büyükakyüz 2024)."""
        name = f"{module.name}.weight"
        tensor = self._base.find_tensor(name)
        weight = self._base.read_tensor(tensor) if tensor is not None else self._base.weight(site)
        if self._base.architecture.family.transposed and tensor is not None:
            weight = weight.T
        if self._initial_update == "olora":
            Q, R = torch.linalg.qr(weight)
            B, A = Q[:, : module.rank] * module.scale, R[: module.rank]
        else:
            factors = factorize(weight, module.rank)
            B, A = factors.U * factors.S, factors.V.T
        return LowRank(self._slice_role_rows(site, B).contiguous(), A.contiguous())

    def _compute_dora_update(self, site: Site, factors: LowRank) -> Tensor:
        name = self._modules[site].magnitude
        assert name is not None
        magnitude = self._slice_role_rows(site, self._read(name).reshape(-1))
        weight = self._base.weight(site)
        adapted = torch.addmm(weight, factors.B, factors.A)
        gain = magnitude / adapted.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        update = adapted.mul_(gain[:, None]).sub_(weight)
        check_finite(update, f"the DoRA update of {site}")
        return update


def read_adapter(
    config: AdapterConfig,
    reader: TensorReader,
    base: ModelWeights,
    *,
    max_rank: int = DENSE_MAX_RANK,
    max_tensors: int = MAX_TENSORS,
) -> SourceAdapter:
    """Validate every tensor name, dtype and shape against config and base, without reading tensor data.

    `max_rank`: the most that the rank of a DoRA update may grow to. Raises MalformedAdapter or
    UnsupportedAdapter, naming the tensors and modules.
    """
    infos = reader.infos()
    if len(infos) > max_tensors:
        raise MalformedAdapter(f"The adapter has {len(infos)} tensors; at most {max_tensors} are read.")
    reject_empty_tensors(infos)
    groups = group_tensor_names(infos, config.modules_to_save)
    expert_loras = take_expert_loras(groups, config, infos, base)
    other_loras, lost_loras = take_other_loras(groups, config, infos, base)
    parameters, unknown = find_parameters(groups, config, infos, base)
    reject_unknown_tensors([*groups.unknown, *unknown], groups, base)
    modules: dict[Site, _LoraModule] = {}
    untargeted: list[str] = []
    for name, tensors in groups.modules.items():
        sites = base.architecture.find_module_sites(name)
        if not config.targets_module(name, sites[0].layer):
            untargeted.append(name)
            continue
        checked = _check_module(name, tensors, sites, config, infos, base)
        for site in sites:
            if site in modules:
                raise MalformedAdapter(
                    f"{modules[site].name} and {name} refer to the same module of the base."
                )
            modules[site] = checked
    width = base.architecture.hidden
    vocabulary_loras, left_behind = find_vocabulary_loras(groups, config, infos, width)
    left_behind += lost_loras
    left_behind += [
        LeftBehind(name, "value head", "only TRL's PPO trainer uses it") for name in groups.value_heads
    ]
    other_modules = sorted(
        {
            *groups.tables,
            *groups.token_rows,
            *groups.vocabulary_loras,
            *groups.parameters,
            *groups.value_heads,
            *(lora.module for lora in expert_loras),
            *(lora.module for lora in other_loras),
        }
    )
    if not modules and other_modules:
        raise UnsupportedAdapter(
            f"The adapter only trained {_format_names(other_modules)}.",
            hint="An adapter with LoRA on at least one attention or MLP module can be converted.",
        )
    if not modules:
        raise MalformedAdapter("The adapter has no LoRA tensors for the modules that its config targets.")
    contents = AdapterContents(
        warnings=tuple(_describe_ignored(groups, untargeted, config)),
        left_behind=tuple(left_behind),
        tables=find_stored_tables(groups, config, infos, width),
        vocabulary_loras=vocabulary_loras,
        parameters=parameters,
        expert_loras=expert_loras,
        other_loras=other_loras,
        expert_ranks={
            name: config.get_rank(f"x.{name}")
            for name in config.target_parameters
            if base.architecture.has_expert_parameter(name)
        },
        task_type=config.task_type,
        is_headless=is_headless({module.name for module in modules.values()}, config, base),
        unknown_options=config.unknown_options,
    )
    return LoraAdapter(modules, config.initial_update, reader, base, contents, max_rank)


def is_headless(modules: Iterable[str], config: AdapterConfig, base: ModelWeights) -> bool:
    """Was it trained on the model without a head? Then names start inside it (`layers.0`, not
    `model.layers.0`), and PEFT finds nothing under the names of a causal language model."""
    root = f"{base.architecture.headless_root}{base.architecture.family.layers}."
    return config.task_type in (None, "FEATURE_EXTRACTION") and all(name.startswith(root) for name in modules)


def reject_empty_tensors(infos: Mapping[str, TensorInfo]) -> None:
    """Raises MalformedAdapter for tensors without values."""
    empty = sorted(name for name, info in infos.items() if 0 in info.shape)
    if empty:
        raise MalformedAdapter(
            f"{len(empty)} tensors of the adapter are empty, such as {_format_names(empty[:1])}: DeepSpeed "
            "ZeRO-3 leaves such a file when each process holds a part of the weights.",
            hint="Save the adapter again with the weights gathered "
            "(stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py on the checkpoint).",
            pointer="/adapter",
        )


def reject_unknown_tensors(names: Iterable[str], groups: TensorGroups, base: ModelWeights) -> None:
    unknown = [
        *names,
        *(name for name in groups.modules if not base.architecture.find_module_sites(name)),
    ]
    if unknown:
        raise MalformedAdapter(
            f"Tensors of the adapter match no module of the source base "
            f"({base.architecture.model_type}, {base.layers} layers): {_format_names(unknown)}.",
            hint="Set `source` to the base model that the adapter was trained on.",
            pointer="/source",
        )


def _check_module(
    name: str,
    tensors: ModuleTensors,
    sites: tuple[Site, ...],
    config: AdapterConfig,
    infos: Mapping[str, TensorInfo],
    base: ModelWeights,
) -> _LoraModule:
    if tensors.A is None or tensors.B is None:
        raise MalformedAdapter(f"{name} lacks its lora_{'A' if tensors.A is None else 'B'} tensor.")
    if config.dora != (tensors.magnitude is not None):
        missing = "has no lora_magnitude_vector, but" if config.dora else "has a lora_magnitude_vector, but"
        raise MalformedAdapter(f"{name} {missing} adapter_config.json says use_dora is {config.dora}.")
    rank = config.get_rank(name)
    o = sum(base.shape(site)[0] for site in sites)
    i = base.shape(sites[0])[1]
    if rank > 4 * min(o, i):
        raise MalformedAdapter(f"{name} has rank {rank}, far above the maximum rank of its {o}×{i} weight.")
    _check_shape(name, "lora_A", infos[tensors.A], (rank, i), along=1)
    _check_shape(name, "lora_B", infos[tensors.B], (o, rank), along=0)
    if tensors.magnitude is not None:
        info = infos[tensors.magnitude]
        flat = TensorInfo(info.dtype, tuple(size for size in info.shape if size != 1) or (1,))
        _check_shape(name, "lora_magnitude_vector", flat, (o,), along=0)
    return _LoraModule(name, tensors.A, tensors.B, tensors.magnitude, rank, config.compute_scale(name))


def _check_shape(module: str, part: str, info: TensorInfo, expected: tuple[int, ...], along: int) -> None:
    """`along` is the dimension set by the base; the other one is the rank."""
    if info.dtype not in _DTYPES:
        raise MalformedAdapter(
            f"{part} of {module} is stored as {info.dtype}; only F32, F16 and BF16 are supported."
        )
    if info.shape == expected:
        return
    shapes = f"{part} of {module} should have shape {list(expected)}, but has {list(info.shape)}"
    if len(info.shape) == len(expected) and info.shape[along] == expected[along]:
        raise MalformedAdapter(f"The rank contradicts adapter_config.json: {shapes}.")
    raise MalformedAdapter(
        f"The source base does not fit this adapter: {shapes}.",
        hint="Set `source` to the base model that the adapter was trained on.",
        pointer="/source",
    )


def _format_names(names: list[str]) -> str:
    shown = ", ".join(name[:120] for name in names[:_MAX_LISTED])
    return shown if len(names) <= _MAX_LISTED else f"{shown} and {len(names) - _MAX_LISTED} more"


def _describe_ignored(groups: TensorGroups, untargeted: list[str], config: AdapterConfig) -> list[str]:
    """Warnings about what PEFT itself does not apply."""
    warnings = []
    if config.token_indices and not groups.token_rows:
        warnings.append(
            "The config names retrained tokens, but the file contains none, so none are transferred."
        )
    if untargeted:
        warnings.append(
            f"{len(untargeted)} modules have LoRA tensors that adapter_config.json does not target, so "
            f"PEFT ignores them and they are not transferred: {_format_names(untargeted)}."
        )
    return warnings
