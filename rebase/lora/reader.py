"""Reads a source adapter as low-rank updates, one site at a time.

ΔW = s·B·A (LoRA, Hu et al. 2021), s = α/r or α/√r (rsLoRA). The roles of a fused module share A and slice B.
DoRA (Liu et al. 2024) rescales rows: W' = (m/‖W + s·B·A‖) (W + s·B·A), norms per output row; its update
W' − W has full rank, so it is truncated where 99.9 % of its energy is kept, and the lost share is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.extra_parts import (
    LeftBehind,
    StoredParameter,
    VocabularyLora,
    find_parameters,
    find_vocabulary_loras,
)
from rebase.lora.linalg import factorize
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.tensor_names import ModuleTensors, TensorGroups, group_tensor_names
from rebase.lora.tensors import TensorInfo, TensorReader
from rebase.lora.trained_tables import StoredTable, find_stored_tables

if TYPE_CHECKING:
    from rebase.models.weights import ModelWeights

MAX_TENSORS = 100_000  # 1,000 layers of 7 modules with magnitudes have 21,000
_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = frozenset(_TORCH_DTYPES)
_MAX_LISTED = 5  # how many offending names an error lists
# Share of a DoRA update's energy that its low-rank form keeps: 3 % of the norm is lost, less than the 5 %
# above which a verdict is never `compatible`.
DORA_ENERGY = 0.999
# The default limit of a DoRA update's rank. vLLM accepts ranks of up to 512, and a file of rank 256 is
# already a few percent of its base.
DORA_MAX_RANK = 256


@dataclass(frozen=True, slots=True)
class _CheckedModule:
    """One adapted module with validated names and shapes."""

    name: str
    A: str
    B: str
    magnitude: str | None
    rank: int
    scale: float


class SourceAdapter:
    """Updates of one adapter on one base. `delta` reads on every call and stores only measurements.

    `warnings`: messages for users. `left_behind`: trained parts that cannot be transferred in any case.
    `tables`, `vocabulary_loras`, `parameters`: what was trained besides the sites; the caller decides whether
    to transfer it. `task_type`: PEFT's, or None. `is_headless`: trained on the model that `AutoModel` loads.
    `unknown_options`: switched-on config keys that PEFT does not know. `measurements`: filled as sites are
    read; DoRA sites get `dora_lost_energy`.
    """

    def __init__(
        self,
        modules: Mapping[Site, _CheckedModule],
        reader: TensorReader,
        base: ModelWeights,
        *,
        warnings: list[str],
        left_behind: list[LeftBehind],
        tables: tuple[StoredTable, ...],
        vocabulary_loras: tuple[VocabularyLora, ...],
        parameters: tuple[StoredParameter, ...],
        task_type: str | None,
        is_headless: bool,
        unknown_options: tuple[str, ...],
        dora_max_rank: int,
    ) -> None:
        self._modules = modules
        self._reader = reader
        self._base = base
        self.sites: tuple[Site, ...] = tuple(site for site in base.sites if site in modules)
        self.rank: int = max(module.rank for module in modules.values())
        self.warnings = warnings
        self.left_behind = left_behind
        self.tables = tables
        self.vocabulary_loras = vocabulary_loras
        self.parameters = parameters
        self.task_type = task_type
        self.is_headless = is_headless
        self.unknown_options = unknown_options
        self._dora_max_rank = dora_max_rank
        self.measurements: dict[Site, dict[str, float]] = {}

    def delta(self, site: Site) -> LowRank:
        """The site's update in float32, scale folded into B. Raises MalformedAdapter on NaN or Inf."""
        module = self._modules[site]
        A = self._read(module.A)
        B = self._slice_role_rows(site, self._read(module.B)) * module.scale
        _check_finite(B, f"{module.B} times its scale {module.scale:g}")
        if module.magnitude is None:
            return LowRank(B.contiguous(), A)
        return self._truncate_dora_update(site, self._compute_dora_update(site, module, B, A), module.rank)

    @property
    def dora_sites(self) -> tuple[Site, ...]:
        """The sites whose update has full rank, so that `delta` loses a part of it."""
        return tuple(site for site in self.sites if self._modules[site].magnitude is not None)

    def exact_update(self, site: Site) -> Tensor:
        """The site's whole update, dense (o, i) float32; differs from `delta` for DoRA."""
        module = self._modules[site]
        A = self._read(module.A)
        B = self._slice_role_rows(site, self._read(module.B)) * module.scale
        return B @ A if module.magnitude is None else self._compute_dora_update(site, module, B, A)

    def read_parameter(self, parameter: StoredParameter) -> Tensor:
        """A fully trained parameter in float32. MalformedAdapter on NaN or Inf."""
        return self._read(parameter.tensor_name)

    def round_like(self, parameter: StoredParameter, tensor: Tensor) -> Tensor:
        """A float32 tensor rounded to the dtype in which the adapter stores this parameter."""
        stored = self._reader.infos()[parameter.tensor_name].dtype
        return tensor.to(_TORCH_DTYPES[stored]).float()

    def read_vocabulary_lora(self, lora: VocabularyLora) -> LowRank:
        """The change of a token table, (tokens, width), as factors in float32 with the scale folded in."""
        A, B = self._read(lora.A), self._read(lora.B)
        return LowRank(A.T * lora.scale, B.T) if lora.is_embedding else LowRank(B * lora.scale, A)

    def read_table_rows(self, table: StoredTable, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a trained table in the stored dtype. MalformedAdapter on NaN or Inf."""
        rows = self._reader.read_rows(table.tensor_name, start, stop)
        _check_finite(rows, table.tensor_name)
        return rows

    def _compute_dora_update(self, site: Site, module: _CheckedModule, B: Tensor, A: Tensor) -> Tensor:
        assert module.magnitude is not None
        magnitude = self._slice_role_rows(site, self._read(module.magnitude).reshape(-1))
        weight = self._base.weight(site)
        adapted = torch.addmm(weight, B, A)
        gain = magnitude / adapted.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        update = adapted.mul_(gain[:, None]).sub_(weight)
        _check_finite(update, f"the DoRA update of {site}")
        return update

    def _truncate_dora_update(self, site: Site, update: Tensor, rank: int) -> LowRank:
        """At the adapter's rank or the one that keeps DORA_ENERGY, whichever is larger and allowed."""
        factors = factorize(update, max(rank, self._dora_max_rank))
        squares = factors.S.double().square()
        total = float(update.double().square().sum())
        shares = squares.cumsum(0) / total if total > 0.0 else torch.ones_like(squares)
        kept = min(max(rank, int((shares < DORA_ENERGY).sum()) + 1), factors.S.numel())
        lost_energy = max(0.0, 1.0 - float(shares[kept - 1])) if kept < min(update.shape) else 0.0
        self.measurements[site] = {"dora_lost_energy": lost_energy}
        return LowRank(factors.U[:, :kept] * factors.S[:kept], factors.V[:, :kept].T.contiguous())

    def _slice_role_rows(self, site: Site, tensor: Tensor) -> Tensor:
        rows = self._base.architecture.get_output_rows(site.role)
        return tensor if rows is None else tensor[rows]

    def _read(self, name: str) -> Tensor:
        tensor = self._reader.read(name).float()
        _check_finite(tensor, name)
        return tensor


def read_adapter(
    config: AdapterConfig,
    reader: TensorReader,
    base: ModelWeights,
    *,
    dora_max_rank: int = DORA_MAX_RANK,
) -> SourceAdapter:
    """Validate every tensor name, dtype and shape against config and base, without reading tensor data.

    `dora_max_rank`: the most that a DoRA update may grow to. Raises MalformedAdapter or UnsupportedAdapter,
    naming the tensors and modules.
    """
    infos = reader.infos()
    if len(infos) > MAX_TENSORS:
        raise MalformedAdapter(f"The adapter has {len(infos)} tensors; at most {MAX_TENSORS} are read.")
    _reject_empty_tensors(infos)
    groups = group_tensor_names(infos, config.modules_to_save)
    parameters, unknown = find_parameters(groups, config, infos, base)
    _reject_unknown_tensors([*groups.unknown, *unknown], groups, base)
    modules: dict[Site, _CheckedModule] = {}
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
        }
    )
    if not modules and other_modules:
        raise UnsupportedAdapter(
            f"The adapter only trained {_format_names(other_modules)}.",
            hint="An adapter with LoRA on at least one attention or MLP module can be converted.",
        )
    if not modules:
        raise MalformedAdapter("The adapter has no LoRA tensors for the modules that its config targets.")
    return SourceAdapter(
        modules,
        reader,
        base,
        warnings=_describe_ignored(groups, untargeted, config),
        left_behind=left_behind,
        tables=find_stored_tables(groups, config, infos, width),
        vocabulary_loras=vocabulary_loras,
        parameters=parameters,
        task_type=config.task_type,
        is_headless=_is_headless(modules.values(), config, base),
        unknown_options=config.unknown_options,
        dora_max_rank=dora_max_rank,
    )


def _is_headless(modules: Iterable[_CheckedModule], config: AdapterConfig, base: ModelWeights) -> bool:
    """Was it trained on the model without a head? Then names start inside it (`layers.0`, not
    `model.layers.0`), and PEFT finds nothing under the names of a causal language model."""
    return config.task_type in (None, "FEATURE_EXTRACTION") and all(
        module.name.startswith(f"{base.architecture.headless_root}{base.architecture.family.layers}.")
        for module in modules
    )


def _reject_empty_tensors(infos: Mapping[str, TensorInfo]) -> None:
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


def _reject_unknown_tensors(names: Iterable[str], groups: TensorGroups, base: ModelWeights) -> None:
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
) -> _CheckedModule:
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
    return _CheckedModule(name, tensors.A, tensors.B, tensors.magnitude, rank, config.compute_scale(name))


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


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise MalformedAdapter(f"The adapter contains NaN or Inf in {name}.")


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
