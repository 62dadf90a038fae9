"""Transfers token rows that an adapter trained besides its LoRA factors, and reports what is left out.

`plan_tokens` decides from configs, tokenizers and headers, before the pre-check is reported;
`transfer_tokens` reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rebase.conversion.token_tables import (
    TrainedTable,
    get_module_name,
    get_table,
    group_tables,
    is_tied,
    list_target_tables,
)
from rebase.errors import TransferError, escape_control_characters
from rebase.evidence.inputs import LoadedInputs
from rebase.hub.base import Hub
from rebase.lora.token_rows import (
    build_transferred_rows,
    collect_changed_rows,
    find_ids_beyond_base,
    iter_row_deltas,
)
from rebase.lora.trained_tables import StoredTable
from rebase.lora.writer import BuiltAdapter, OutputTable, add_embedding_tables
from rebase.methods.registry import get_method
from rebase.models.model_reader import open_model
from rebase.models.vocabulary import Vocabulary, map_token_rows
from rebase.report.schema import Report

_MAX_LISTED = 5  # tokens named in a warning
_MAX_ROUNDING_ERROR = 0.25  # fraction of the trained change lost to rounding above which to warn


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """The tables to transfer, and warnings about those left out."""

    tables: tuple[TrainedTable, ...] = ()
    target_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    token_names: dict[int, str] = field(default_factory=dict)
    not_carried: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def add_to_report(self, report: Report) -> Report:
        """The report with this plan's warnings."""
        return _extend_report(report, self.not_carried, self.warnings)


@dataclass(frozen=True, slots=True)
class TransferredTokens:
    """The adapter with its token rows, and what to report about them."""

    built: BuiltAdapter
    summary: dict[str, float]
    not_carried: tuple[str, ...]
    warnings: tuple[str, ...]

    def add_to_report(self, report: Report) -> Report:
        """The report with the warnings about the rows."""
        return _extend_report(report, self.not_carried, self.warnings)

    def add_summary(self, report: Report) -> Report:
        """The report with the measurements of the rows in its summary."""
        return (
            report.model_copy(update={"summary": report.summary | self.summary}) if self.summary else report
        )


def plan_tokens(inputs: LoadedInputs, hub: Hub, method: str, *, enabled: bool = True) -> TokenPlan:
    """Decide which trained tables the method can transfer. Reads the tokenizers only if there are any."""
    stored = inputs.adapter.tables
    if not stored:
        return TokenPlan()
    reason = (
        _find_obstacle(inputs, method)
        if enabled
        else "the request asks for a plain LoRA (output.token_rows=false)"
    )
    vocabularies = None if reason else _load_vocabularies(inputs, hub)
    if vocabularies is None:
        reason = reason or "one of the two bases has no readable tokenizer.json"
        return _skip_tables(stored, reason)
    tables, unknown = group_tables(inputs)
    skipped = _skip_tables(unknown, "the bases have no such table")
    source, target = vocabularies
    rows = max((get_table(inputs, "source", part.roles[0]).rows for part in tables), default=0)
    target_rows = min(
        (get_table(inputs, "target", side).rows for part in tables for side in part.roles), default=0
    )
    return TokenPlan(
        tables=tables,
        target_ids=map_token_rows(source, target, rows, target_rows),
        token_names={id_: piece for piece, id_ in source.pieces.items()},
        not_carried=skipped.not_carried,
        warnings=skipped.warnings,
    )


def transfer_tokens(
    plan: TokenPlan, inputs: LoadedInputs, built: BuiltAdapter, dtype: str
) -> TransferredTokens:
    """Add the plan's rows to the adapter. Raises MalformedAdapter, VerificationFailed."""
    warnings: list[str] = []
    lost_modules: list[str] = []
    written_tables: list[OutputTable] = []
    summary: dict[str, float] = {}
    tied = is_tied(inputs.target.config)
    for trained in plan.tables:
        base = get_table(inputs, "source", trained.roles[0])
        read_changes = partial(iter_row_deltas, inputs.adapter, trained.stored, base)
        row_survey = collect_changed_rows(read_changes(), plan.target_ids)
        lost = sorted({*row_survey.unmatched_ids, *find_ids_beyond_base(trained.stored, base)})
        if lost:
            warnings.append(_warn_lost_rows(trained.stored.module, lost, plan.token_names))
        warnings += _warn_unnamed_rows(trained.stored, plan)
        if not row_survey.target_ids.numel():
            if lost:
                lost_modules.append(trained.stored.module)
            continue
        for role, ids in list_target_tables(
            trained.roles, row_survey, get_table(inputs, "target", trained.roles[0]).rows, tied
        ):
            target = get_table(inputs, "target", role)
            rows, error = build_transferred_rows(read_changes(), plan.target_ids, target, ids, dtype)
            name = get_module_name(inputs, role)
            written_tables.append(OutputTable(name, None if ids is None else tuple(ids.tolist()), rows))
            summary |= {
                f"token_rows.{role}.carried": float(row_survey.target_ids.numel()),
                f"token_rows.{role}.without_counterpart": float(len(lost)),
                f"token_rows.{role}.written_error": error,
            }
            if error > _MAX_ROUNDING_ERROR:
                warnings.append(_warn_rounding(name, error, dtype))
    if not written_tables:
        return TransferredTokens(built, {}, tuple(lost_modules), tuple(warnings))
    ties_weights = tied and any(len(part.roles) == 2 for part in plan.tables)
    return TransferredTokens(
        add_embedding_tables(built, written_tables, tie=ties_weights),
        summary,
        tuple(lost_modules),
        (*warnings, _warn_loaders(summary)),
    )


def _find_obstacle(inputs: LoadedInputs, method: str) -> str | None:
    """Why this method cannot transfer token rows between these bases; None if it can."""
    source, target = inputs.source.embedding_shape[1], inputs.target.embedding_shape[1]
    if source != target:
        return f"the rows have width {source} in the source base and {target} in the target"
    if not get_method(method).keeps_coordinates:
        return f"the method {method} changes coordinates, and token rows have no map"
    return None


def _load_vocabularies(inputs: LoadedInputs, hub: Hub) -> tuple[Vocabulary, Vocabulary] | None:
    vocabularies = []
    for repo in (inputs.pinned.source, inputs.pinned.target):
        raw = open_model(hub, repo)[2]
        if raw is None:
            return None
        try:
            vocabularies.append(Vocabulary.from_tokenizer_json(raw))
        except TransferError:
            return None
    return vocabularies[0], vocabularies[1]


def _skip_tables(tables: Iterable[StoredTable], reason: str) -> TokenPlan:
    modules = tuple(table.module for table in tables)
    return TokenPlan(
        not_carried=modules,
        warnings=tuple(
            f"{module} (trained token rows) is not transferred: {reason}. The adapter works without it."
            for module in modules
        ),
    )


def _warn_lost_rows(module: str, lost: list[int], names: Mapping[int, str]) -> str:
    return (
        f"{len(lost)} trained row(s) of {module} are not transferred because the target has no such token "
        f"or no row for it: {_format_tokens(lost, names)}."
    )


def _warn_unnamed_rows(stored: StoredTable, plan: TokenPlan) -> list[str]:
    """Warn about rows without a token: new tokens often use spare rows that only the adapter's tokenizer
    names."""
    rows = [id_ for id_ in stored.ids or () if id_ < len(plan.target_ids) and plan.target_ids[id_] >= 0]
    unnamed = sorted({id_ for id_ in rows if id_ not in plan.token_names})
    if not unnamed:
        return []
    return [
        f"{len(unnamed)} trained row(s) of {stored.module} belong to no token of the source base's "
        f"tokenizer and kept their row numbers: {_format_tokens(unnamed, plan.token_names)}. Use the "
        "adapter's tokenizer."
    ]


def _warn_loaders(summary: Mapping[str, float]) -> str:
    count = sum(int(value) for name, value in summary.items() if name.endswith(".carried"))
    return (
        f"{count} trained token row(s) were transferred. PEFT loads them; vLLM and llama.cpp refuse "
        "adapters that have any. To use one of those, merge it with PEFT (merge_and_unload), or set "
        "output.token_rows=false."
    )


def _format_tokens(rows: list[int], names: Mapping[int, str]) -> str:
    shown = ", ".join(repr(names[id_])[:40] if id_ in names else f"row {id_}" for id_ in rows[:_MAX_LISTED])
    return shown if len(rows) <= _MAX_LISTED else f"{shown} and {len(rows) - _MAX_LISTED} more"


def _warn_rounding(module: str, error: float, dtype: str) -> str:
    return (
        f"Storing the trained rows of {module} as {dtype} changes what was trained by {error:.0%} of its "
        "norm; set output.dtype to float32 to preserve it."
    )


def _extend_report(report: Report, not_carried: tuple[str, ...], warnings: tuple[str, ...]) -> Report:
    if not (not_carried or warnings):
        return report
    return report.model_copy(
        update={
            "not_carried": [*report.not_carried, *not_carried],
            "warnings": [*report.warnings, *map(escape_control_characters, warnings)],
        }
    )
