"""Which tables of tokens two bases have, and which of them a trained table stands for under PEFT.

A base has one table for input and output (tied) or two. PEFT changes single rows of a tied embedding in the
head too, but copies a whole table alone; both are followed on the way in and on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from transfer.adapter.tables import StoredTable
from transfer.tokens import HEADS, Side, Survey, Table, side_of, table_name
from workers.reading import Opened
from workers.verify.structure import model_config


@dataclass(frozen=True, slots=True)
class Part:
    """A trained table of the adapter, and the tables of its base it stands for: both where they are one."""

    stored: StoredTable
    sides: tuple[Side, ...]


def parts_of(opened: Opened) -> tuple[tuple[Part, ...], list[StoredTable]]:
    """(parts, tables that one of the bases does not have), following how PEFT applies them to the source.

    With one table for input and output, rows of single tokens in the embedding hold for both, unless the head
    has rows of its own; so does a whole table that PEFT loads into the base itself.
    """
    tied = is_tied(opened.source.config)
    by_side: dict[Side, StoredTable] = {}
    unknown: list[StoredTable] = []
    for stored in opened.adapter.tables:
        side = side_of(opened.source.architecture, stored.module)
        if side is None or side in by_side or not _have(opened, side):
            unknown.append(stored)
        else:
            by_side[side] = stored
    both: tuple[Side, ...] = ("input", "output")
    first = by_side.get("input", by_side.get("output"))
    if first is not None and tied and all(_have(opened, side) for side in both) and _is_one(by_side):
        return (Part(first, both),), unknown
    return tuple(Part(stored, (side,)) for side, stored in sorted(by_side.items())), unknown


def _is_one(by_side: Mapping[Side, StoredTable]) -> bool:
    """Do the tables found stand for the one table of a tied base?"""
    head, embedding = by_side.get("output"), by_side.get("input")
    if any(stored.tied for stored in by_side.values()) or (embedding is not None and not embedding.named):
        return True
    if embedding is None:
        return head is not None and not head.named
    if embedding.ids is None:
        return False  # PEFT copies the embedding alone and leaves the head as it is
    return head is None or head.ids == embedding.ids or not head.named


def places(
    sides: tuple[Side, ...], found: Survey, rows: int, tied: bool
) -> Iterator[tuple[Side, Tensor | None]]:
    """The target's tables to write, each with its single rows, or None for the whole table.

    Where the target has one table, PEFT ties single rows of the embedding to the head. So a change of the
    embedding alone is stored whole there, and a change of both as single rows of the embedding alone.
    """
    single = found.form(rows) == "rows"
    if tied and len(sides) == 2 and single:
        yield "input", found.targets
        return
    for side in sides:
        yield side, found.targets if single and not (tied and side == "input") else None


def _have(opened: Opened, side: Side) -> bool:
    """Do both bases have this table, with a row of the hidden width per token?"""
    tables = (_table(opened, "source", side), _table(opened, "target", side))
    return all(table is not None and table.width == opened.source.architecture.hidden for table in tables)


def _table(opened: Opened, which: Literal["source", "target"], side: Side) -> Table | None:
    """A table of a base; input and output are the same one where the base ties them."""
    base, reader = (
        (opened.source, opened.source_reader) if which == "source" else (opened.target, opened.target_reader)
    )
    name = table_name(base.architecture, reader.infos(), "input" if is_tied(base.config) else side)
    return None if name is None else Table(reader, name)


def table_of(opened: Opened, which: Literal["source", "target"], side: Side) -> Table:
    """A table that `_have` has found."""
    table = _table(opened, which, side)
    if table is None:
        raise ValueError(f"the {which} base has no {side} table")
    return table


def is_tied(config: Mapping[str, Any]) -> bool:
    """Is the head the embedding? The default differs by family, so transformers' own config is asked."""
    return bool(getattr(model_config(config), "tie_word_embeddings", False))


def module_of(opened: Opened, side: Side) -> str:
    """The table's module in the target as transformers builds it."""
    architecture = opened.target.architecture
    return f"{architecture.root}{architecture.family.embedding}" if side == "input" else HEADS[0]
