"""The token tables that an adapter has trained: whole matrices, or rows of single tokens.

PEFT stores the trained rows, not their change: `trainable_token_indices` keeps one row per listed token,
`modules_to_save` (or a saved embedding layer) the whole matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rebase.errors import MalformedAdapter
from rebase.lora.config import AdapterConfig
from rebase.lora.tensor_names import TensorGroups
from rebase.lora.tensors import TensorInfo

_DTYPES = frozenset({"F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class StoredTable:
    """Trained rows of one module. `ids`: the token of each row, or None if row j is token j.

    `named`: the config asks for a copy of this module; otherwise PEFT loads the rows into the base itself.
    `tied`: a base with one table for input and output was trained with both tied (`ensure_weight_tying`).
    """

    module: str
    tensor_name: str
    rows: int
    ids: tuple[int, ...] | None
    named_in_config: bool
    tied: bool


def find_stored_tables(
    groups: TensorGroups, config: AdapterConfig, infos: Mapping[str, TensorInfo], width: int
) -> tuple[StoredTable, ...]:
    """The tables in the file, by module. `width`: the base's hidden size.

    Raises MalformedAdapter if shapes contradict the config or the base. Single-token rows that the config
    does not name are copies that PEFT writes alongside a tied embedding; they are left out.
    """
    tables = []
    for module, tensor in sorted(groups.tables.items()):
        rows = _count_rows(module, infos[tensor], width)
        named_in_config = any(module.endswith(name) for name in config.modules_to_save)
        tables.append(StoredTable(module, tensor, rows, None, named_in_config, config.ensure_weight_tying))
    for module, tensor in sorted(groups.token_rows.items()):
        ids = _get_token_ids(module, config)
        if ids is None:
            continue
        rows = _count_rows(module, infos[tensor], width)
        if rows != len(ids):
            raise MalformedAdapter(
                f"{module} has {rows} rows, but adapter_config.json names {len(ids)} token(s)."
            )
        tables.append(
            StoredTable(module, tensor, rows, ids, named_in_config=True, tied=config.ensure_weight_tying)
        )
    return tuple(tables)


def _get_token_ids(module: str, config: AdapterConfig) -> tuple[int, ...] | None:
    """The longest matching module suffix wins; a bare list means the input embedding."""
    names = [name for name in config.token_indices if name and module.endswith(name)]
    if names:
        return config.token_indices[max(names, key=len)]
    leaf = module.rpartition(".")[2]
    return None if leaf in {"lm_head", "embed_out"} else config.token_indices.get("")


def _count_rows(module: str, info: TensorInfo, width: int) -> int:
    if info.dtype not in _DTYPES:
        raise MalformedAdapter(f"{module} is stored as {info.dtype}; only F32, F16 and BF16 are supported.")
    if len(info.shape) != 2 or info.shape[1] != width:
        raise MalformedAdapter(
            f"The source base does not fit this adapter: the rows of {module} have shape "
            f"{list(info.shape)}, but the base's embeddings have width {width}.",
            hint="Set `source` to the base model that the adapter was trained on.",
            pointer="/source",
        )
    return info.shape[0]
