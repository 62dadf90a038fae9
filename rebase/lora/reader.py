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
from rebase.lora.tensor_names import ModuleTensors, SortedNames, sort_names
from rebase.lora.tensors import TensorInfo, TensorReader
from rebase.lora.trained_tables import StoredTable, stored_tables

if TYPE_CHECKING:
    from rebase.models.weights import ModelWeights

MAX_TENSORS = 100_000  # 1,000 layers of 7 modules with magnitudes have 21,000
_DTYPES = frozenset({"F32", "F16", "BF16"})
_NAMED = 5  # how many offending names an error lists


@dataclass(frozen=True, slots=True)
class _Module:
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
        modules: Mapping[Site, _Module],
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
        B = self._role_rows(site, self._read(module.B)) * module.scale
        _check_finite(B, f"{module.B} times its scale {module.scale:g}")
        if module.magnitude is None:
            return LowRank(B.contiguous(), A)
        magnitude = self._role_rows(site, self._read(module.magnitude).reshape(-1))
        return self._dora(site, B, A, magnitude, module.rank)

    def table_rows(self, table: StoredTable, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a trained table in the stored dtype. MalformedAdapter on NaN or Inf."""
        rows = self._reader.read_rows(table.tensor, start, stop)
        _check_finite(rows, table.tensor)
        return rows

    def _dora(self, site: Site, B: Tensor, A: Tensor, magnitude: Tensor, rank: int) -> LowRank:
        weight = self._base.weight(site)
        moved = torch.addmm(weight, B, A)
        gain = magnitude / moved.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        update = moved.mul_(gain[:, None]).sub_(weight)
        _check_finite(update, f"the DoRA update of {site}")
        factors = factorize(update, rank)
        self.measurements[site] = {"dora_lost_energy": 1.0 - factors.energy if update.any() else 0.0}
        return LowRank(factors.U * factors.S, factors.V.T.contiguous())

    def _role_rows(self, site: Site, whole: Tensor) -> Tensor:
        rows = self._base.architecture.rows(site.role)
        return whole if rows is None else whole[rows]

    def _read(self, name: str) -> Tensor:
        tensor = self._reader.read(name).float()
        _check_finite(tensor, name)
        return tensor


def read_adapter(config: AdapterConfig, reader: TensorReader, base: ModelWeights) -> SourceAdapter:
    """Validate every tensor name, dtype and shape against config and base, without reading tensor data.

    Raises MalformedAdapter or UnsupportedAdapter, naming the tensors and modules.
    """
    infos = reader.infos()
    if len(infos) > MAX_TENSORS:
        raise MalformedAdapter(f"The adapter has {len(infos)} tensors; at most {MAX_TENSORS} are read.")
    found = sort_names(infos, config.modules_to_save)
    _refuse_unknown(found, base)
    modules: dict[Site, _Module] = {}
    ignored: list[str] = []
    for name, tensors in found.modules.items():
        sites = base.architecture.sites_of_module(name)
        if not config.targets(name, sites[0].layer):
            ignored.append(name)
            continue
        checked = _check_module(name, tensors, sites, config, infos, base)
        for site in sites:
            if site in modules:
                raise MalformedAdapter(f"{modules[site].name} and {name} are the same module of the base.")
            modules[site] = checked
    others = sorted({*found.not_carried, *found.tables, *found.tokens})
    if not modules and others:
        raise UnsupportedAdapter(f"The adapter trained nothing but {_listed(others)}.")
    if not modules:
        raise MalformedAdapter("The adapter has no LoRA tensors for any module that its config targets.")
    tables = stored_tables(found, config, infos, base.architecture.hidden)
    return SourceAdapter(modules, reader, base, *_left_behind(found, ignored, config), tables)


def _refuse_unknown(found: SortedNames, base: ModelWeights) -> None:
    strangers = found.unknown + [
        name for name in found.modules if not base.architecture.sites_of_module(name)
    ]
    if strangers:
        raise MalformedAdapter(
            f"Tensors of the adapter match no module of the source base "
            f"({base.architecture.model_type}, {base.layers} layers): {_listed(strangers)}.",
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
) -> _Module:
    if tensors.A is None or tensors.B is None:
        raise MalformedAdapter(f"{name} lacks its lora_{'A' if tensors.A is None else 'B'} tensor.")
    if config.dora != (tensors.magnitude is not None):
        missing = "has no lora_magnitude_vector, but" if config.dora else "has a lora_magnitude_vector, but"
        raise MalformedAdapter(f"{name} {missing} adapter_config.json says use_dora is {config.dora}.")
    rank = config.rank_of(name)
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
    return _Module(name, tensors.A, tensors.B, tensors.magnitude, rank, config.scale_of(name))


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


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:120] for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _check_finite(tensor: Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise MalformedAdapter(f"The adapter holds NaN or Inf in {name}.")


def _left_behind(
    found: SortedNames, ignored: list[str], config: AdapterConfig
) -> tuple[list[str], list[str]]:
    """(warnings, not_carried): what will not be transferred."""
    warnings = [
        f"{module} ({what}) is not carried; the converted adapter works without it."
        for module, what in found.not_carried.items()
    ]
    left = list(found.not_carried)
    if config.token_indices and not found.tokens:
        warnings.append("The config names retrained tokens, but the file holds none; nothing is carried.")
    if ignored:
        warnings.append(
            f"{len(ignored)} modules have LoRA tensors that adapter_config.json does not target, so PEFT "
            f"ignores them and they are not carried: {_listed(ignored)}."
        )
    return warnings, [*left, *ignored]
