"""Reads a source adapter as low-rank updates, one site at a time.

ΔW = s·B·A (LoRA, Hu et al. 2021), s = α/r or α/√r (rsLoRA). The roles of a fused module share A and slice B.
DoRA (Liu et al. 2024) rescales rows: W' = (m/‖W + s·B·A‖) (W + s·B·A), norms per output row; its update
W' − W has full rank, so it is truncated to the adapter's rank and the lost share of energy is reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rebase.errors import MalformedAdapter, UnsupportedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.linalg import factorize
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.tensor_names import ModuleTensors, TensorGroups, group_tensor_names
from rebase.lora.tensors import TensorInfo, TensorReader
from rebase.lora.trained_tables import StoredTable, find_stored_tables

if TYPE_CHECKING:
    from rebase.models.weights import ModelWeights

MAX_TENSORS = 100_000  # 1,000 layers of 7 modules with magnitudes have 21,000
_DTYPES = frozenset({"F32", "F16", "BF16"})
_MAX_LISTED = 5  # how many offending names an error lists


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

    `warnings`: messages for users. `not_carried`: trained modules that are not transferred. `tables`: trained
    token rows, which belong to no site; the caller decides whether to transfer them.
    `measurements`: filled as sites are read; DoRA sites get `dora_lost_energy`.
    """

    def __init__(
        self,
        modules: Mapping[Site, _CheckedModule],
        reader: TensorReader,
        base: ModelWeights,
        warnings: list[str],
        not_carried: list[str],
        tables: tuple[StoredTable, ...] = (),
    ) -> None:
        self._modules = modules
        self._reader = reader
        self._base = base
        self.sites: tuple[Site, ...] = tuple(site for site in base.sites if site in modules)
        self.rank: int = max(module.rank for module in modules.values())
        self.warnings = warnings
        self.not_carried = not_carried
        self.tables = tables
        self.measurements: dict[Site, dict[str, float]] = {}

    def delta(self, site: Site) -> LowRank:
        """The site's update in float32, scale folded into B. Raises MalformedAdapter on NaN or Inf."""
        module = self._modules[site]
        A = self._read(module.A)
        B = self._slice_role_rows(site, self._read(module.B)) * module.scale
        _check_finite(B, f"{module.B} times its scale {module.scale:g}")
        if module.magnitude is None:
            return LowRank(B.contiguous(), A)
        magnitude = self._slice_role_rows(site, self._read(module.magnitude).reshape(-1))
        return self._compute_dora_update(site, B, A, magnitude, module.rank)

    def read_table_rows(self, table: StoredTable, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a trained table in the stored dtype. MalformedAdapter on NaN or Inf."""
        rows = self._reader.read_rows(table.tensor_name, start, stop)
        _check_finite(rows, table.tensor_name)
        return rows

    def _compute_dora_update(self, site: Site, B: Tensor, A: Tensor, magnitude: Tensor, rank: int) -> LowRank:
        weight = self._base.weight(site)
        adapted = torch.addmm(weight, B, A)
        gain = magnitude / adapted.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        update = adapted.mul_(gain[:, None]).sub_(weight)
        _check_finite(update, f"the DoRA update of {site}")
        factors = factorize(update, rank)
        self.measurements[site] = {"dora_lost_energy": 1.0 - factors.energy if update.any() else 0.0}
        return LowRank(factors.U * factors.S, factors.V.T.contiguous())

    def _slice_role_rows(self, site: Site, tensor: Tensor) -> Tensor:
        rows = self._base.architecture.get_output_rows(site.role)
        return tensor if rows is None else tensor[rows]

    def _read(self, name: str) -> Tensor:
        tensor = self._reader.read(name).float()
        _check_finite(tensor, name)
        return tensor


def read_adapter(
    config: AdapterConfig, reader: TensorReader, base: ModelWeights, *, max_tensors: int = MAX_TENSORS
) -> SourceAdapter:
    """Validate every tensor name, dtype and shape against config and base, without reading tensor data.

    Raises MalformedAdapter or UnsupportedAdapter, naming the tensors and modules.
    """
    infos = reader.infos()
    if len(infos) > max_tensors:
        raise MalformedAdapter(f"The adapter has {len(infos)} tensors; at most {max_tensors} are read.")
    groups = group_tensor_names(infos, config.modules_to_save)
    _reject_unknown_tensors(groups, base)
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
                raise MalformedAdapter(f"{modules[site].name} and {name} are the same module of the base.")
            modules[site] = checked
    other_modules = sorted({*groups.not_carried, *groups.tables, *groups.token_rows})
    if not modules and other_modules:
        raise UnsupportedAdapter(f"The adapter trained nothing but {_format_names(other_modules)}.")
    if not modules:
        raise MalformedAdapter("The adapter has no LoRA tensors for any module that its config targets.")
    tables = find_stored_tables(groups, config, infos, base.architecture.hidden)
    return SourceAdapter(modules, reader, base, *_describe_not_carried(groups, untargeted, config), tables)


def _reject_unknown_tensors(groups: TensorGroups, base: ModelWeights) -> None:
    unknown = groups.unknown + [
        name for name in groups.modules if not base.architecture.find_module_sites(name)
    ]
    if unknown:
        raise MalformedAdapter(
            f"Tensors of the adapter match no module of the source base "
            f"({base.architecture.model_type}, {base.layers} layers): {_format_names(unknown)}.",
            hint="Name the base model that the adapter was trained on as `source`.",
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
        raise MalformedAdapter(f"{name} has rank {rank}, far above what its {o}×{i} weight can hold.")
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
        raise MalformedAdapter(f"{part} of {module} is stored as {info.dtype}; F32, F16 and BF16 are read.")
    if info.shape == expected:
        return
    shapes = f"{part} of {module} should be {list(expected)}, but is {list(info.shape)}"
    if len(info.shape) == len(expected) and info.shape[along] == expected[along]:
        raise MalformedAdapter(f"The rank contradicts adapter_config.json: {shapes}.")
    raise MalformedAdapter(
        f"The source base does not fit this adapter: {shapes}.",
        hint="Name the base model that the adapter was trained on as `source`.",
        pointer="/source",
    )


def _format_names(names: list[str]) -> str:
    shown = ", ".join(name[:120] for name in names[:_MAX_LISTED])
    return shown if len(names) <= _MAX_LISTED else f"{shown} and {len(names) - _MAX_LISTED} more"


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise MalformedAdapter(f"The adapter holds NaN or Inf in {name}.")


def _describe_not_carried(
    groups: TensorGroups, untargeted: list[str], config: AdapterConfig
) -> tuple[list[str], list[str]]:
    """(warnings, not_carried): what will not be transferred."""
    warnings = [
        f"{module} ({reason}) is not carried; the converted adapter works without it."
        for module, reason in groups.not_carried.items()
    ]
    not_carried = list(groups.not_carried)
    if config.token_indices and not groups.token_rows:
        warnings.append("The config names retrained tokens, but the file holds none; nothing is carried.")
    if untargeted:
        warnings.append(
            f"{len(untargeted)} modules have LoRA tensors that adapter_config.json does not target, so PEFT "
            f"ignores them and they are not carried: {_format_names(untargeted)}."
        )
    return warnings, [*not_carried, *untargeted]
