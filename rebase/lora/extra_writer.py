"""Adds to a built LoRA what PEFT stores beside the factors of the layers' modules: token tables, fully
trained parameters, and LoRA on token tables, experts and further modules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank
from rebase.lora.writer import (
    DTYPES,
    LORA_A,
    LORA_B,
    PREFIX,
    BuiltAdapter,
    cast_update,
    make_overflow_error,
)

_EMBEDDING_A, _EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"


@dataclass(frozen=True, slots=True)
class OutputTable:
    """Token rows for one module of the target: those of `ids` (ascending), or all rows if `ids` is None."""

    module: str
    ids: tuple[int, ...] | None
    rows: Tensor


def add_embedding_tables(built: BuiltAdapter, tables: Sequence[OutputTable], *, tie: bool) -> BuiltAdapter:
    """The adapter with token rows as PEFT (0.15 and later) stores them.

    tie: the target shares one table between input and output, and keeps doing so. Single rows then need only
    the embedding; whole tables are given for both modules.
    """
    tensors, config = dict(built.tensors), dict(built.config)
    for table in tables:
        part = "weight" if table.ids is None else "token_adapter.trainable_tokens_delta"
        tensors[f"{PREFIX}{table.module}.{part}"] = table.rows
    full_tables = [_get_leaf_name(table.module) for table in tables if table.ids is None]
    token_indices = {
        _get_leaf_name(table.module): list(table.ids) for table in tables if table.ids is not None
    }
    if full_tables:
        config["modules_to_save"] = sorted([*(config["modules_to_save"] or ()), *full_tables])
    if token_indices:
        config["trainable_token_indices"] = token_indices
    if tie and full_tables:
        config["ensure_weight_tying"] = True
    return replace(built, tensors=dict(sorted(tensors.items())), config=config)


@dataclass(frozen=True, slots=True)
class OutputParameter:
    """A fully trained parameter of the target, such as `model.norm.weight`, in float32."""

    name: str
    value: Tensor

    @property
    def module(self) -> str:
        """The module that has it."""
        return self.name.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """`weight` or `bias`."""
        return self.name.rpartition(".")[2]


def add_parameters(built: BuiltAdapter, parameters: Sequence[OutputParameter], dtype: str) -> BuiltAdapter:
    """The adapter with fully trained parameters as PEFT stores them: biases of adapted modules under
    `bias: lora_only`, everything else in `modules_to_save`, under full names.

    PEFT compares `modules_to_save` with the ends of names, so that `norm` alone would mean every layer norm.
    Raises VerificationFailed for values that are not finite or overflow the dtype.
    """
    tensors, config = dict(built.tensors), dict(built.config)
    modules: set[str] = set(config["modules_to_save"] or ())
    for parameter in parameters:
        value = parameter.value.to(DTYPES[dtype])
        if not bool(torch.isfinite(value).all()):
            raise make_overflow_error(parameter.name, dtype)
        if built.adapts(parameter.module):
            config["bias"] = "lora_only"
            tensors[f"{PREFIX}{parameter.module}.base_layer.{parameter.parameter}"] = value.contiguous()
        else:
            modules.add(parameter.module)
            tensors[f"{PREFIX}{parameter.name}"] = value.contiguous()
    config["modules_to_save"] = sorted(modules) or None
    return replace(built, tensors=dict(sorted(tensors.items())), config=config)


def add_vocabulary_lora(
    built: BuiltAdapter, module: str, update: LowRank, *, is_embedding: bool, dtype: str
) -> BuiltAdapter:
    """The adapter with a LoRA on its embedding or output head; `update`: the change of the table, (tokens,
    width). All modules are padded to the larger rank."""
    stored = cast_update(module, update, dtype)
    rank = max(built.rank, update.rank)
    built = _pad_to_rank(built, rank)
    pad = rank - update.rank
    B = torch.nn.functional.pad(stored.B, (0, pad)).contiguous()
    A = torch.nn.functional.pad(stored.A, (0, 0, 0, pad)).contiguous()
    prefix = f"{PREFIX}{module}"
    added = (
        {f"{prefix}{_EMBEDDING_A}": B.T.contiguous(), f"{prefix}{_EMBEDDING_B}": A.T.contiguous()}
        if is_embedding
        else {f"{prefix}{LORA_A}": A, f"{prefix}{LORA_B}": B}
    )
    targets = built.config["target_modules"]
    uses_full_names = any("." in name and name in built.modules for name in targets)
    name = module if uses_full_names else _get_leaf_name(module)
    config = {**built.config, "target_modules": sorted({*targets, name})}
    return replace(built, tensors=dict(sorted({**built.tensors, **added}.items())), config=config)


def add_module_loras(built: BuiltAdapter, updates: Mapping[str, LowRank], dtype: str) -> BuiltAdapter:
    """The adapter with LoRA on further linear modules of the model, by their full names."""
    for module, update in sorted(updates.items()):
        stored = cast_update(module, update, dtype)
        rank = max(built.rank, update.rank)
        built = _pad_to_rank(built, rank)
        pad = rank - update.rank
        tensors = {
            **built.tensors,
            f"{PREFIX}{module}{LORA_A}": torch.nn.functional.pad(stored.A, (0, 0, 0, pad)).contiguous(),
            f"{PREFIX}{module}{LORA_B}": torch.nn.functional.pad(stored.B, (0, pad)).contiguous(),
        }
        config = {**built.config, "target_modules": sorted({*built.config["target_modules"], module})}
        built = replace(built, tensors=dict(sorted(tensors.items())), config=config)
    return built


def add_expert_loras(
    built: BuiltAdapter,
    loras: Mapping[str, LowRank],
    *,
    ranks: Mapping[str, int],
    dtype: str,
) -> BuiltAdapter:
    """The adapter with LoRA on parameters that hold one matrix for each expert. `loras`: PEFT's module name →
    factors as PEFT stores them; `ranks`: PEFT's `target_parameters` → the rank of each expert, which patterns
    keep apart from that of the modules."""
    added: dict[str, Tensor] = {}
    for module, factors in loras.items():
        stored = cast_update(module, factors, dtype)
        added[f"{PREFIX}{module}{LORA_A}"] = stored.A.contiguous()
        added[f"{PREFIX}{module}{LORA_B}"] = stored.B.contiguous()
    patterns = {rf".*\.{re.escape(name)}": rank for name, rank in ranks.items()}
    config = {
        **built.config,
        "target_parameters": sorted(ranks),
        "rank_pattern": {**built.config["rank_pattern"], **patterns},
        "alpha_pattern": {**built.config["alpha_pattern"], **patterns},
    }
    return replace(built, tensors=dict(sorted({**built.tensors, **added}.items())), config=config)


def _pad_to_rank(built: BuiltAdapter, rank: int) -> BuiltAdapter:
    pad = rank - built.rank
    if pad == 0:
        return built
    tensors = dict(built.tensors)
    for name, tensor in tensors.items():
        if name.endswith((LORA_A, _EMBEDDING_A)):
            tensors[name] = torch.nn.functional.pad(tensor, (0, 0, 0, pad))
        elif name.endswith((LORA_B, _EMBEDDING_B)):
            tensors[name] = torch.nn.functional.pad(tensor, (0, pad))
    config = {**built.config, "r": rank, "lora_alpha": rank}
    return replace(built, tensors=tensors, config=config, rank=rank)


def set_task(built: BuiltAdapter, task_type: str | None, *, headless_prefix: str | None) -> BuiltAdapter:
    """The adapter for another task than language modelling. `headless_prefix`: the first part of the module
    names (`model.`), which the model without a head does not have; None keeps the names."""
    config = {**built.config, "task_type": task_type}
    if headless_prefix is None:
        return replace(built, config=config)
    for key in ("target_modules", "modules_to_save"):
        config[key] = [name.removeprefix(headless_prefix) for name in config[key] or ()] or None
    prefix = f"{PREFIX}{headless_prefix}"
    tensors = {
        f"{PREFIX}{name.removeprefix(prefix)}" if name.startswith(prefix) else name: tensor
        for name, tensor in built.tensors.items()
    }
    return replace(built, tensors=tensors, config=config)


def _get_leaf_name(module: str) -> str:
    return module.rpartition(".")[2]
