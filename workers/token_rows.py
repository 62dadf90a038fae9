"""What an adapter trained beside its LoRA pairs: token rows are carried where that has a meaning, and
everything else is named.

`plan` decides from configs, tokenizers and headers, before the pre-check is reported; `carry` reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import printable
from transfer.adapter.tables import StoredTable
from transfer.adapter.write import BuiltAdapter, WrittenTable, with_tables
from transfer.errors import TransferError
from transfer.tokens import (
    HEADS,
    SHARED_COORDINATES,
    Side,
    Survey,
    Table,
    beyond,
    changes,
    moved_rows,
    side_of,
    survey,
    table_name,
)
from transfer.vocabulary import Vocabulary, counterparts
from workers.hub.port import HubPort
from workers.reading import Opened
from workers.report import Report
from workers.tensors.model_reader import open_model
from workers.verify.structure import model_config

_NAMED = 5  # how many tokens a warning names
_COARSE = 0.25  # share of the trained change that rounding may take before it is worth a warning
_LOADERS = (
    "Trained token rows were carried. PEFT loads them; vLLM and llama.cpp refuse adapters that have them, so "
    "merge this one into its base with PEFT (merge_and_unload) before you serve it there."
)


@dataclass(frozen=True, slots=True)
class _Part:
    """A trained table of the adapter, and the tables of its base it stands for: both where they are one."""

    stored: StoredTable
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """What will be carried, and sentences about what will not."""

    parts: tuple[_Part, ...] = ()
    target_of: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    names: dict[int, str] = field(default_factory=dict)
    not_carried: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def told(self, report: Report) -> Report:
        """The report with this plan's sentences."""
        return _told(report, self.not_carried, self.warnings)


@dataclass(frozen=True, slots=True)
class CarriedTokens:
    """The adapter with its token rows, and what to say about them."""

    built: BuiltAdapter
    summary: dict[str, float]
    not_carried: tuple[str, ...]
    warnings: tuple[str, ...]

    def told(self, report: Report) -> Report:
        """The report with what happened to the rows."""
        return _told(report, self.not_carried, self.warnings)

    def summed(self, report: Report) -> Report:
        """The report whose summary has the figures of the rows."""
        return (
            report.model_copy(update={"summary": report.summary | self.summary}) if self.summary else report
        )


def plan_tokens(opened: Opened, hub: HubPort, method: str) -> TokenPlan:
    """Which trained tables the method can carry. Tokenizers are read again, only when there are any."""
    stored = opened.adapter.tables
    if not stored:
        return TokenPlan()
    reason = _obstacle(opened, method)
    vocabularies = None if reason else _vocabularies(opened, hub)
    if vocabularies is None:
        reason = reason or "one of the two bases has no tokenizer.json that can be read"
        return _nothing(stored, reason)
    parts, unknown = _parts(opened)
    refused = _nothing(unknown, "the bases have no such table of tokens")
    source, target = vocabularies
    rows = max((_at(opened, "source", part.sides[0]).rows for part in parts), default=0)
    target_rows = min((_at(opened, "target", side).rows for part in parts for side in part.sides), default=0)
    return TokenPlan(
        parts=parts,
        target_of=counterparts(source, target, rows, target_rows),
        names={id_: piece for piece, id_ in source.pieces.items()},
        not_carried=refused.not_carried,
        warnings=refused.warnings,
    )


def carry_tokens(plan: TokenPlan, opened: Opened, built: BuiltAdapter, dtype: str) -> CarriedTokens:
    """Add the plan's rows to the adapter. Raises MalformedAdapter, VerificationFailed."""
    warnings: list[str] = []
    lost_parts: list[str] = []
    tables: list[WrittenTable] = []
    summary: dict[str, float] = {}
    tied = _is_tied(opened.target.config)
    for part in plan.parts:
        base = _at(opened, "source", part.sides[0])
        read = partial(changes, opened.adapter, part.stored, base)
        found = survey(read(), plan.target_of)
        lost = sorted({*found.lost, *beyond(part.stored, base)})
        if lost:
            warnings.append(_about_lost(part.stored.module, lost, plan.names))
        if not found.targets.numel():
            if lost:
                lost_parts.append(part.stored.module)
            continue
        for side, ids in _places(part.sides, found, _at(opened, "target", part.sides[0]).rows, tied):
            target = _at(opened, "target", side)
            rows, error = moved_rows(read(), plan.target_of, target, ids, dtype)
            name = _module(opened, side)
            tables.append(WrittenTable(name, None if ids is None else tuple(ids.tolist()), rows))
            summary |= {
                f"token_rows.{side}.carried": float(found.targets.numel()),
                f"token_rows.{side}.without_counterpart": float(len(lost)),
                f"token_rows.{side}.written_error": error,
            }
            if error > _COARSE:
                warnings.append(_about_rounding(name, error, dtype))
    if not tables:
        return CarriedTokens(built, {}, tuple(lost_parts), tuple(warnings))
    one = tied and any(len(part.sides) == 2 for part in plan.parts)
    return CarriedTokens(
        with_tables(built, tables, tie=one), summary, tuple(lost_parts), (*warnings, _LOADERS)
    )


def _obstacle(opened: Opened, method: str) -> str | None:
    """Why no token row can be carried between these bases by this method, if so."""
    source, target = opened.source.embedding_shape[1], opened.target.embedding_shape[1]
    if source != target:
        return f"a token has {source} numbers in the source base and {target} in the target"
    if method not in SHARED_COORDINATES:
        return f"the method {method} changes coordinates, and token rows have no map"
    return None


def _vocabularies(opened: Opened, hub: HubPort) -> tuple[Vocabulary, Vocabulary] | None:
    found = []
    for repo in (opened.pinned.source, opened.pinned.target):
        raw = open_model(hub, repo)[2]
        if raw is None:
            return None
        try:
            found.append(Vocabulary.from_tokenizer_json(raw))
        except TransferError:
            return None
    return found[0], found[1]


def _parts(opened: Opened) -> tuple[tuple[_Part, ...], list[StoredTable]]:
    """(parts, tables that one of the bases does not have), following how PEFT applies them to the source.

    With one table for input and output, rows of single tokens in the embedding hold for both, unless the head
    has rows of its own; so does a whole table that PEFT loads into the base itself.
    """
    tied = _is_tied(opened.source.config)
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
    if first is not None and tied and _have(opened, "input") and _is_one(opened, by_side):
        return (_Part(first, both),), unknown
    return tuple(_Part(stored, (side,)) for side, stored in sorted(by_side.items())), unknown


def _is_one(opened: Opened, by_side: dict[Side, StoredTable]) -> bool:
    """Do the tables found stand for the one table of a tied base?"""
    head, embedding = by_side.get("output"), by_side.get("input")
    if any(stored.tied for stored in by_side.values()) or (embedding is not None and not embedding.named):
        return True
    if embedding is None:
        return head is not None and not head.named
    if embedding.ids is None:
        return False  # PEFT copies the embedding alone and leaves the head as it is
    return head is None or head.ids == embedding.ids or not head.named


def _places(
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
    name = table_name(base.architecture, reader.infos(), "input" if _is_tied(base.config) else side)
    return None if name is None else Table(reader, name)


def _at(opened: Opened, which: Literal["source", "target"], side: Side) -> Table:
    """A table that `_have` has found."""
    table = _table(opened, which, side)
    if table is None:
        raise ValueError(f"the {which} base has no {side} table")
    return table


def _is_tied(config: Mapping[str, Any]) -> bool:
    """Is the head the embedding? The default differs by family, so transformers' own config is asked."""
    return bool(getattr(model_config(config), "tie_word_embeddings", False))


def _module(opened: Opened, side: Side) -> str:
    """The table's module in the target as transformers builds it."""
    architecture = opened.target.architecture
    return f"{architecture.root}{architecture.family.embedding}" if side == "input" else HEADS[0]


def _nothing(stored: Iterable[StoredTable], reason: str) -> TokenPlan:
    modules = tuple(table.module for table in stored)
    return TokenPlan(
        not_carried=modules,
        warnings=tuple(
            f"{module} (trained token rows) is not carried: {reason}. The adapter works without it."
            for module in modules
        ),
    )


def _about_lost(module: str, lost: list[int], names: Mapping[int, str]) -> str:
    shown = ", ".join(repr(names[id_])[:40] if id_ in names else f"row {id_}" for id_ in lost[:_NAMED])
    more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
    return (
        f"{len(lost)} trained row(s) of {module} are not carried, because the target has no such token or no "
        f"row for it: {shown}{more}."
    )


def _about_rounding(module: str, error: float, dtype: str) -> str:
    return (
        f"Storing the trained rows of {module} as {dtype} changes what was trained by {error:.0%} of its "
        "norm; ask for output.dtype float32 to keep it."
    )


def _told(report: Report, not_carried: tuple[str, ...], warnings: tuple[str, ...]) -> Report:
    if not (not_carried or warnings):
        return report
    return report.model_copy(
        update={
            "not_carried": [*report.not_carried, *not_carried],
            "warnings": [*report.warnings, *map(printable, warnings)],
        }
    )
