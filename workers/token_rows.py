"""What an adapter trained beside its LoRA pairs: token rows are carried where that has a meaning, and
everything else is named.

`plan` decides from configs, tokenizers and headers, before the pre-check is reported; `carry` reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rebase.errors import TransferError, escape_control_characters
from rebase.methods.registry import get_method
from transfer.adapter.tables import StoredTable
from transfer.adapter.write import BuiltAdapter, WrittenTable, with_tables
from transfer.tokens import beyond, changes, moved_rows, survey
from transfer.vocabulary import Vocabulary, counterparts
from workers.hub.port import HubPort
from workers.reading import Opened
from workers.report import Report
from workers.tensors.model_reader import open_model
from workers.token_tables import Part, is_tied, module_of, parts_of, places, table_of

_NAMED = 5  # how many tokens a warning names
_COARSE = 0.25  # share of the trained change that rounding may take before it is worth a warning


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """What will be carried, and sentences about what will not."""

    parts: tuple[Part, ...] = ()
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


def plan_tokens(opened: Opened, hub: HubPort, method: str, *, wanted: bool = True) -> TokenPlan:
    """Which trained tables the method can carry. Tokenizers are read again, only when there are any."""
    stored = opened.adapter.tables
    if not stored:
        return TokenPlan()
    reason = _obstacle(opened, method) if wanted else "the request asks for a plain LoRA (output.token_rows)"
    vocabularies = None if reason else _vocabularies(opened, hub)
    if vocabularies is None:
        reason = reason or "one of the two bases has no tokenizer.json that can be read"
        return _nothing(stored, reason)
    parts, unknown = parts_of(opened)
    refused = _nothing(unknown, "the bases have no such table of tokens")
    source, target = vocabularies
    rows = max((table_of(opened, "source", part.sides[0]).rows for part in parts), default=0)
    target_rows = min(
        (table_of(opened, "target", side).rows for part in parts for side in part.sides), default=0
    )
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
    tied = is_tied(opened.target.config)
    for part in plan.parts:
        base = table_of(opened, "source", part.sides[0])
        read = partial(changes, opened.adapter, part.stored, base)
        found = survey(read(), plan.target_of)
        lost = sorted({*found.lost, *beyond(part.stored, base)})
        if lost:
            warnings.append(_about_lost(part.stored.module, lost, plan.names))
        warnings += _about_unnamed(part.stored, plan)
        if not found.targets.numel():
            if lost:
                lost_parts.append(part.stored.module)
            continue
        for side, ids in places(part.sides, found, table_of(opened, "target", part.sides[0]).rows, tied):
            target = table_of(opened, "target", side)
            rows, error = moved_rows(read(), plan.target_of, target, ids, dtype)
            name = module_of(opened, side)
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
        with_tables(built, tables, tie=one), summary, tuple(lost_parts), (*warnings, _about_loaders(summary))
    )


def _obstacle(opened: Opened, method: str) -> str | None:
    """Why no token row can be carried between these bases by this method, if so."""
    source, target = opened.source.embedding_shape[1], opened.target.embedding_shape[1]
    if source != target:
        return f"a token has {source} numbers in the source base and {target} in the target"
    if not get_method(method).keeps_coordinates:
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
    return (
        f"{len(lost)} trained row(s) of {module} are not carried, because the target has no such token or no "
        f"row for it: {_listed(lost, names)}."
    )


def _about_unnamed(stored: StoredTable, plan: TokenPlan) -> list[str]:
    """New tokens often take spare rows behind the vocabulary; only the adapter's own tokenizer knows them."""
    rows = [id_ for id_ in stored.ids or () if id_ < len(plan.target_of) and plan.target_of[id_] >= 0]
    unnamed = sorted({id_ for id_ in rows if id_ not in plan.names})
    if not unnamed:
        return []
    return [
        f"{len(unnamed)} trained row(s) of {stored.module} belong to no token of the source base's tokenizer "
        f"and were carried by their position: {_listed(unnamed, plan.names)}. Use the adapter's tokenizer."
    ]


def _about_loaders(summary: Mapping[str, float]) -> str:
    count = sum(int(value) for name, value in summary.items() if name.endswith(".carried"))
    return (
        f"{count} trained token row(s) were carried. PEFT loads them; vLLM and llama.cpp refuse adapters "
        "that have any. For those, merge it with PEFT (merge_and_unload), or set output.token_rows=false."
    )


def _listed(rows: list[int], names: Mapping[int, str]) -> str:
    shown = ", ".join(repr(names[id_])[:40] if id_ in names else f"row {id_}" for id_ in rows[:_NAMED])
    return shown if len(rows) <= _NAMED else f"{shown} and {len(rows) - _NAMED} more"


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
            "warnings": [*report.warnings, *map(escape_control_characters, warnings)],
        }
    )
