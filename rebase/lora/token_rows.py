"""Transfers trained token rows to the target by adding each row's change, D = trained − source base.

The target's row for the same token becomes its own row + D. This is meaningful only if both tables have the
same width and the method keeps coordinates unchanged. Rows are read and summed in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rebase.errors import VerificationFailed
from rebase.lora.source_adapter import SourceAdapter
from rebase.lora.tensors import READABLE_DTYPES, TensorInfo, TensorReader
from rebase.lora.trained_tables import StoredTable
from rebase.lora.writer import DTYPES

if TYPE_CHECKING:
    from rebase.models.architecture import Architecture

EmbeddingRole = Literal["input", "output"]  # the embedding, or the head that produces logits
LM_HEAD_NAMES = ("lm_head", "embed_out")  # transformers itself calls it `lm_head` in every family

# Above this share of changed rows the whole table is stored. A stored row costs the same either way, but for
# single rows PEFT copies the table at each forward pass, and for a whole table it keeps a second one.
MAX_SINGLE_ROWS_SHARE = 0.05

_BLOCK_SIZE = 2**22  # numbers per block: 16 MB in float32
_MAX_GAP = 64  # gaps of up to this many rows are read through instead of split into two reads
_MAX_RUN = 4096  # maximum rows read at once for scattered ids


class EmbeddingTable:
    """A base model's token table, (rows, width), read piecewise in its stored dtype."""

    def __init__(self, reader: TensorReader, name: str) -> None:
        self._reader = reader
        self.name = name
        self.rows, self.width = reader.infos()[name].shape

    def read(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self._reader.read_rows(self.name, start, stop)

    def gather(self, ids: Tensor) -> Tensor:
        """The rows of the given ids, which must be ascending."""
        parts = [
            self.read(start, stop)[ids[begin:end] - start] for start, stop, begin, end in _iter_runs(ids)
        ]
        return torch.cat(parts) if parts else self.read(0, 0)


def find_table_name(
    architecture: Architecture, infos: Mapping[str, TensorInfo], role: EmbeddingRole
) -> str | None:
    """Tensor name of a base's input or output table; None if the checkpoint has no readable one."""
    family = architecture.family
    prefixes = dict.fromkeys((architecture.root, "", *family.prefixes, "language_model."))
    modules = (family.embedding,) if role == "input" else LM_HEAD_NAMES
    names = (f"{prefix}{module}.weight" for module in modules for prefix in prefixes)
    name = next((name for name in names if name in infos), None)
    if name is None or infos[name].dtype not in READABLE_DTYPES or len(infos[name].shape) != 2:
        return None
    return name


def get_embedding_role(architecture: Architecture, module: str) -> EmbeddingRole | None:
    """Which of the base's tables an adapter module is; None if neither."""
    prefix, _, leaf = module.rpartition(".")
    if leaf in LM_HEAD_NAMES:
        return "output"
    prefixes = {architecture.root, *architecture.family.prefixes}
    in_text_model = (f"{prefix}." if prefix else "") in prefixes
    return "input" if in_text_model and leaf == architecture.family.embedding else None


def iter_row_deltas(
    adapter: SourceAdapter, stored: StoredTable, base: EmbeddingTable, *, block_size: int = _BLOCK_SIZE
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, D) block by block, for rows that differ from the base: ids (n,) int64, D (n, width) float32.

    A row counts as unchanged if it equals the base's row rounded to the adapter's dtype. Rows beyond the
    base's table have nothing to compare with and are left out. `block_size`: numbers per block.
    """
    step = max(1, block_size // base.width)
    if stored.ids is None:
        for start in range(0, min(stored.rows, base.rows), step):
            stop = min(start + step, stored.rows, base.rows)
            ids = torch.arange(start, stop)
            yield from _iter_changed_rows(
                ids, adapter.read_table_rows(stored, start, stop), base.read(start, stop)
            )
        return
    row_by_id = {
        id_: row for row, id_ in enumerate(stored.ids) if id_ < base.rows
    }  # the last occurrence of a repeated id wins, as in PEFT
    ordered_ids = sorted(row_by_id)
    trained = adapter.read_table_rows(stored, 0, stored.rows)
    for start in range(0, len(ordered_ids), step):
        ids = torch.tensor(ordered_ids[start : start + step])
        rows = torch.tensor([row_by_id[id_] for id_ in ordered_ids[start : start + step]])
        yield from _iter_changed_rows(ids, trained[rows], base.gather(ids))


def find_ids_beyond_base(stored: StoredTable, base: EmbeddingTable) -> list[int]:
    """Token ids for which the adapter has rows but its own base does not."""
    if stored.ids is None:
        return list(range(base.rows, stored.rows))
    return sorted({id_ for id_ in stored.ids if id_ >= base.rows})


def iter_new_rows(
    adapter: SourceAdapter,
    stored: StoredTable,
    base: EmbeddingTable,
    target: EmbeddingTable,
    row_map: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, D) for trained rows beyond the base's table whose token the target has, block by block.

    Such a row was initialised at random or as a mean when the table grew, so there is no change to transfer:
    D = trained − the target's row, and the target gets the trained row as it is.
    """
    row_by_id = {id_: row for row, id_ in enumerate(stored.ids)} if stored.ids is not None else None
    new_ids = [id_ for id_ in find_ids_beyond_base(stored, base) if int(row_map[id_]) >= 0]
    step = max(1, _BLOCK_SIZE // base.width)
    for start in range(0, len(new_ids), step):
        ids = torch.tensor(new_ids[start : start + step])
        rows = ids if row_by_id is None else torch.tensor([row_by_id[int(id_)] for id_ in ids])
        first = int(rows.min())
        trained = adapter.read_table_rows(stored, first, int(rows.max()) + 1)[rows - first].float()
        target_ids, order = row_map[ids].sort()
        own_rows = torch.empty_like(trained)
        own_rows[order] = target.gather(target_ids).float()
        yield ids, trained - own_rows


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """Which rows changed. `targets`: ascending ids in the target; `lost`: source ids with no counterpart."""

    target_ids: Tensor
    unmatched_ids: list[int]

    def choose_storage(self, rows: int) -> Literal["rows", "whole"]:
        """How to store the changed rows, given the number of rows in the target's table."""
        return "rows" if self.target_ids.numel() <= max(1, MAX_SINGLE_ROWS_SHARE * rows) else "whole"


def collect_changed_rows(blocks: Iterable[tuple[Tensor, Tensor]], row_map: Tensor) -> ChangedRows:
    """Split changed rows by whether the target has the token. `target_of`: see `vocabulary.counterparts`."""
    matched: list[Tensor] = []
    unmatched_ids: list[int] = []
    for ids, _ in blocks:
        target_ids = row_map[ids]
        matched.append(target_ids[target_ids >= 0])
        unmatched_ids += ids[target_ids < 0].tolist()
    return ChangedRows(
        torch.cat(matched).sort().values if matched else torch.empty(0, dtype=torch.long), unmatched_ids
    )


def build_transferred_rows(
    blocks: Iterable[tuple[Tensor, Tensor]],
    row_map: Tensor,
    target: EmbeddingTable,
    ids: Tensor | None,
    dtype: str,
) -> tuple[Tensor, float]:
    """The target's rows + D, cast to `dtype`, and the rounding loss ‖stored − exact‖/‖D‖.

    ids: the target rows to store, ascending; None for all. Only the result is held in memory, once.
    Raises VerificationFailed if values overflow the dtype.
    """
    step = max(1, _BLOCK_SIZE // target.width)
    out = torch.empty(target.rows if ids is None else ids.numel(), target.width, dtype=DTYPES[dtype])
    for start in range(0, out.shape[0], step):
        stop = min(start + step, out.shape[0])
        out[start:stop] = target.read(start, stop) if ids is None else target.gather(ids[start:stop])
    squared_error, squared_norm = 0.0, 0.0
    for source, change in blocks:
        target_ids, order = row_map[source].sort()
        has_target = target_ids >= 0
        target_ids, D = target_ids[has_target], change[order[has_target]]
        exact = target.gather(target_ids).float() + D
        stored = exact.to(out.dtype)
        out[target_ids if ids is None else torch.searchsorted(ids, target_ids)] = stored
        squared_error += float((stored.float() - exact).square().sum())
        squared_norm += float(D.square().sum())
    if not all(bool(torch.isfinite(block).all()) for block in torch.split(out, step)):
        raise VerificationFailed(
            f"The trained rows of {target.name} do not fit into {dtype}: some values overflow.",
            hint="Set output.dtype to bfloat16 or float32.",
            pointer="/output/dtype",
        )
    return out, (squared_error / squared_norm) ** 0.5 if squared_norm else 0.0


def _iter_changed_rows(ids: Tensor, trained: Tensor, base_rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    changed = (trained != base_rows.to(trained.dtype)).any(1)
    if bool(changed.any()):
        yield ids[changed], trained[changed].float() - base_rows[changed].float()


def _iter_runs(ids: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, begin, end): rows [start, stop) contain ids[begin:end]; small gaps are read through."""
    apart = (ids[1:] - ids[:-1] > _MAX_GAP) | (ids[1:] // _MAX_RUN != ids[:-1] // _MAX_RUN)
    cuts = apart.nonzero().flatten() + 1
    bounds = [0, *cuts.tolist(), ids.numel()] if ids.numel() else []
    for begin, end in pairwise(bounds):
        yield int(ids[begin]), int(ids[end - 1]) + 1, begin, end
