"""Trained token rows on a new base: what moves is the change of a row, D = trained − base.

The new base's row of the same token becomes its own row + D. That has a meaning where both tables have one
width and the method moves updates in unchanged coordinates. Everything is read and summed by blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from rebase.errors import VerificationFailed
from rebase.lora.reader import SourceAdapter
from rebase.lora.tensors import READABLE_DTYPES, TensorInfo, TensorReader
from rebase.lora.trained_tables import StoredTable
from rebase.lora.writer import DTYPES

if TYPE_CHECKING:
    from rebase.models.architecture import Architecture

Side = Literal["input", "output"]  # the embedding, or the head that gives logits
HEADS = ("lm_head", "embed_out")  # transformers itself calls it `lm_head` in every family

# Above this share of a table's rows it is stored whole. A stored row costs the same either way; PEFT copies
# the table at each forward pass for single rows, and keeps a second one for a whole table.
MOST_SINGLE_ROWS = 0.05

_BLOCK = 2**22  # numbers per block: 16 MB in float32
_GAP = 64  # rows that are read along rather than asked for separately
_RUN = 4096  # most rows read at once for scattered ids


class Table:
    """One table of a base, (rows, width), read in parts in its stored dtype."""

    def __init__(self, reader: TensorReader, name: str) -> None:
        self._reader = reader
        self.name = name
        self.rows, self.width = reader.infos()[name].shape

    def read(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        return self._reader.read_rows(self.name, start, stop)

    def at(self, ids: Tensor) -> Tensor:
        """The rows of ascending ids."""
        parts = [self.read(start, stop)[ids[begin:end] - start] for start, stop, begin, end in _runs(ids)]
        return torch.cat(parts) if parts else self.read(0, 0)


def table_name(architecture: Architecture, infos: Mapping[str, TensorInfo], side: Side) -> str | None:
    """The tensor of a base's input or output table, None when the checkpoint has none that can be read."""
    family = architecture.family
    prefixes = dict.fromkeys((architecture.root, "", *family.prefixes, "language_model."))
    modules = (family.embedding,) if side == "input" else HEADS
    names = (f"{prefix}{module}.weight" for module in modules for prefix in prefixes)
    name = next((name for name in names if name in infos), None)
    if name is None or infos[name].dtype not in READABLE_DTYPES or len(infos[name].shape) != 2:
        return None
    return name


def side_of(architecture: Architecture, module: str) -> Side | None:
    """Which table of the base an adapter's module is; None for anything else."""
    prefix, _, last = module.rpartition(".")
    if last in HEADS:
        return "output"
    known = {architecture.root, *architecture.family.prefixes}
    inside = (f"{prefix}." if prefix else "") in known
    return "input" if inside and last == architecture.family.embedding else None


def changes(adapter: SourceAdapter, stored: StoredTable, base: Table) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, D) block by block, for rows that differ from the base: ids (n,) int64, D (n, width) float32.

    A row that equals the base's, rounded to the dtype of the adapter, was not changed. Rows beyond the base's
    table have nothing to be compared with and are left out.
    """
    step = max(1, _BLOCK // base.width)
    if stored.ids is None:
        for start in range(0, min(stored.rows, base.rows), step):
            stop = min(start + step, stored.rows, base.rows)
            ids = torch.arange(start, stop)
            yield from _differing(ids, adapter.table_rows(stored, start, stop), base.read(start, stop))
        return
    last = {
        id_: row for row, id_ in enumerate(stored.ids) if id_ < base.rows
    }  # of a repeated id the last, as in PEFT
    order = sorted(last)
    trained = adapter.table_rows(stored, 0, stored.rows)
    for start in range(0, len(order), step):
        ids = torch.tensor(order[start : start + step])
        rows = torch.tensor([last[id_] for id_ in order[start : start + step]])
        yield from _differing(ids, trained[rows], base.at(ids))


def beyond(stored: StoredTable, base: Table) -> list[int]:
    """Tokens that the adapter has rows for and its own base has not."""
    if stored.ids is None:
        return list(range(base.rows, stored.rows))
    return sorted({id_ for id_ in stored.ids if id_ >= base.rows})


@dataclass(frozen=True, slots=True)
class Survey:
    """Which rows changed. `targets`: ascending ids in the new base; `lost`: ids that have no counterpart."""

    targets: Tensor
    lost: list[int]

    def form(self, rows: int) -> Literal["rows", "whole"]:
        """How to store them for a table of so many rows."""
        return "rows" if self.targets.numel() <= max(1, MOST_SINGLE_ROWS * rows) else "whole"


def survey(blocks: Iterable[tuple[Tensor, Tensor]], target_of: Tensor) -> Survey:
    """Sort changed rows by whether the new base has the token. `target_of`: see `vocabulary.counterparts`."""
    found: list[Tensor] = []
    lost: list[int] = []
    for ids, _ in blocks:
        targets = target_of[ids]
        found.append(targets[targets >= 0])
        lost += ids[targets < 0].tolist()
    return Survey(torch.cat(found).sort().values if found else torch.empty(0, dtype=torch.long), lost)


def moved_rows(
    blocks: Iterable[tuple[Tensor, Tensor]], target_of: Tensor, target: Table, ids: Tensor | None, dtype: str
) -> tuple[Tensor, float]:
    """The new base's rows + D, cast, and ‖stored − exact‖/‖D‖: how much of the change rounding took.

    ids: ascending target rows that are stored; None for all. One table of the result is all that is held.
    Raises VerificationFailed for rows that the dtype cannot hold.
    """
    step = max(1, _BLOCK // target.width)
    out = torch.empty(target.rows if ids is None else ids.numel(), target.width, dtype=DTYPES[dtype])
    for start in range(0, out.shape[0], step):
        stop = min(start + step, out.shape[0])
        out[start:stop] = target.read(start, stop) if ids is None else target.at(ids[start:stop])
    wrong, size = 0.0, 0.0
    for source, change in blocks:
        targets, order = target_of[source].sort()
        known = targets >= 0
        targets, D = targets[known], change[order[known]]
        exact = target.at(targets).float() + D
        stored = exact.to(out.dtype)
        out[targets if ids is None else torch.searchsorted(ids, targets)] = stored
        wrong += float((stored.float() - exact).square().sum())
        size += float(D.square().sum())
    if not all(bool(torch.isfinite(block).all()) for block in torch.split(out, step)):
        raise VerificationFailed(
            f"The trained rows of {target.name} do not fit into {dtype}: values become infinite.",
            hint="Ask for output.dtype bfloat16 or float32.",
            pointer="/output/dtype",
        )
    return out, (wrong / size) ** 0.5 if size else 0.0


def _differing(ids: Tensor, trained: Tensor, own: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    changed = (trained != own.to(trained.dtype)).any(1)
    if bool(changed.any()):
        yield ids[changed], trained[changed].float() - own[changed].float()


def _runs(ids: Tensor) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, begin, end): rows [start, stop) hold ids[begin:end]; small gaps are read over."""
    apart = (ids[1:] - ids[:-1] > _GAP) | (ids[1:] // _RUN != ids[:-1] // _RUN)
    cuts = apart.nonzero().flatten() + 1
    bounds = [0, *cuts.tolist(), ids.numel()] if ids.numel() else []
    for begin, end in pairwise(bounds):
        yield int(ids[begin]), int(ids[end - 1]) + 1, begin, end
