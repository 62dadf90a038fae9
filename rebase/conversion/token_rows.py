"""Transfers token rows that an adapter trained besides its LoRA factors, and reports what is left out.

`plan_tokens` decides from configs, tokenizers and headers, before the pre-check is reported;
`transfer_tokens` reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rebase.conversion.token_map import TokenMap
from rebase.conversion.token_tables import (
    TrainedTable,
    get_module_name,
    get_table,
    group_tables,
    is_tied,
    list_target_tables,
)
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import LeftBehind
from rebase.lora.extra_writer import OutputTable, add_embedding_tables
from rebase.lora.source_adapter import SourceAdapter
from rebase.lora.token_rows import (
    EmbeddingTable,
    build_transferred_rows,
    collect_changed_rows,
    find_ids_beyond_base,
    iter_new_rows,
    iter_row_deltas,
)
from rebase.lora.trained_tables import StoredTable
from rebase.lora.writer import BuiltAdapter

_MAX_ROUNDING_ERROR = 0.25  # fraction of the trained change lost to rounding above which to warn
_KIND = "trained token rows"


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """The tables to transfer, the target's row for each of their rows (or −1), and what is left out.

    `lost`: module → rows that changed and have no counterpart. `has_lost_new_tokens`: among them are tokens
    that the adapter itself added.
    """

    tables: tuple[TrainedTable, ...] = ()
    row_map: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    tokens: TokenMap | None = None
    lost: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_behind: tuple[LeftBehind, ...] = ()

    @property
    def has_lost_new_tokens(self) -> bool:
        """Are any rows lost that were trained for a token which the adapter's own tokenizer adds?"""
        tokens = self.tokens
        return tokens is not None and any(tokens.is_new(id_) for ids in self.lost.values() for id_ in ids)


@dataclass(frozen=True, slots=True)
class TransferredTokens:
    """The adapter with its token rows, and what to report about them."""

    built: BuiltAdapter
    summary: dict[str, float]
    warnings: tuple[str, ...]


def plan_tokens(inputs: LoadedInputs, tokens: TokenMap | None, obstacle: str | None) -> TokenPlan:
    """Decide which trained tables can be transferred. `obstacle`: why none can."""
    stored = inputs.adapter.tables
    if not stored:
        return TokenPlan()
    if obstacle is None and tokens is None:
        obstacle = "one of the two bases has no readable tokenizer.json"
    tables, unknown = group_tables(inputs)
    if obstacle is not None or tokens is None:
        changed = [part.stored for part in tables if _is_changed(inputs, part)]
        return TokenPlan(
            left_behind=tuple(LeftBehind(t.module, _KIND, str(obstacle)) for t in (*changed, *unknown))
        )
    left_behind = [LeftBehind(t.module, _KIND, "the bases have no such table of tokens") for t in unknown]
    rows = max((_count_adapter_rows(inputs, part) for part in tables), default=0)
    target_rows = min(
        (get_table(inputs, "target", side).rows for part in tables for side in part.roles), default=0
    )
    row_map = tokens.map_rows(rows, target_rows)
    lost = {part.stored.module: ids for part in tables if (ids := _find_lost_rows(inputs, part, row_map))}
    for module, ids in lost.items():
        reason = f"the target has no such token or no row for it ({tokens.describe(list(ids))})"
        left_behind.append(LeftBehind(module, f"{len(ids)} trained token row(s)", reason, is_partial=True))
    return TokenPlan(tables, row_map, tokens, lost, tuple(left_behind))


def _is_changed(inputs: LoadedInputs, trained: TrainedTable) -> bool:
    """Do any rows differ from the base's? Some trainers save the embedding without having trained it."""
    base = get_table(inputs, "source", trained.roles[0])
    if find_ids_beyond_base(trained.stored, base):
        return True
    return any(True for _ in iter_row_deltas(inputs.adapter, trained.stored, base))


def _count_adapter_rows(inputs: LoadedInputs, trained: TrainedTable) -> int:
    """Rows that the table had when it was trained: the base's, or more if the adapter added tokens."""
    stored = trained.stored
    last = stored.rows if stored.ids is None else max(stored.ids, default=-1) + 1
    return max(get_table(inputs, "source", trained.roles[0]).rows, last)


def _find_lost_rows(inputs: LoadedInputs, trained: TrainedTable, row_map: Tensor) -> tuple[int, ...]:
    base = get_table(inputs, "source", trained.roles[0])
    changed = collect_changed_rows(iter_row_deltas(inputs.adapter, trained.stored, base), row_map)
    beyond = find_ids_beyond_base(trained.stored, base)
    return tuple(sorted({*changed.unmatched_ids, *(id_ for id_ in beyond if row_map[id_] < 0)}))


def transfer_tokens(
    plan: TokenPlan, inputs: LoadedInputs, built: BuiltAdapter, dtype: str
) -> TransferredTokens:
    """Add the plan's rows to the adapter. Raises MalformedAdapter, VerificationFailed."""
    warnings: list[str] = []
    written_tables: list[OutputTable] = []
    summary: dict[str, float] = {}
    tied = is_tied(inputs.target.config)
    for trained in plan.tables:
        base = get_table(inputs, "source", trained.roles[0])
        read_changes = partial(_iter_changes, inputs.adapter, trained.stored, base, row_map=plan.row_map)
        first_target = get_table(inputs, "target", trained.roles[0])
        row_survey = collect_changed_rows(read_changes(first_target), plan.row_map)
        warnings += _warn_unnamed_rows(trained.stored, plan)
        if not row_survey.target_ids.numel():
            continue
        for role, ids in list_target_tables(trained.roles, row_survey, first_target.rows, tied):
            target = get_table(inputs, "target", role)
            rows, error = build_transferred_rows(read_changes(target), plan.row_map, target, ids, dtype)
            name = get_module_name(inputs, role)
            written_tables.append(OutputTable(name, None if ids is None else tuple(ids.tolist()), rows))
            summary |= {
                f"token_rows.{role}.carried": float(row_survey.target_ids.numel()),
                f"token_rows.{role}.without_counterpart": float(
                    len(plan.lost.get(trained.stored.module, ()))
                ),
                f"token_rows.{role}.written_error": error,
            }
            if error > _MAX_ROUNDING_ERROR:
                warnings.append(_warn_rounding(name, error, dtype))
    if not written_tables:
        return TransferredTokens(built, {}, tuple(warnings))
    ties_weights = tied and any(len(part.roles) == 2 for part in plan.tables)
    return TransferredTokens(
        add_embedding_tables(built, written_tables, tie=ties_weights),
        summary,
        (*warnings, _warn_loaders(summary)),
    )


def _iter_changes(
    adapter: SourceAdapter,
    stored: StoredTable,
    base: EmbeddingTable,
    target: EmbeddingTable,
    *,
    row_map: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, D): rows that differ from the base, then rows of tokens that the base does not have."""
    yield from iter_row_deltas(adapter, stored, base)
    yield from iter_new_rows(adapter, stored, base, target, row_map)


def _warn_unnamed_rows(stored: StoredTable, plan: TokenPlan) -> list[str]:
    """Warn about single rows that moved by position: no tokenizer names them, or only the adapter's."""
    if plan.tokens is None or stored.ids is None:
        return []
    rows = sorted({id_ for id_ in stored.ids if id_ < len(plan.row_map) and plan.row_map[id_] >= 0})
    names, target_pieces = plan.tokens.names, plan.tokens.target.pieces
    unnamed = [id_ for id_ in rows if id_ not in names]
    own = [id_ for id_ in rows if id_ in names and names[id_] not in target_pieces]
    warnings = []
    if unnamed:
        warnings.append(
            f"{len(unnamed)} trained row(s) of {stored.module} belong to no token of any tokenizer and kept "
            f"their row numbers: {plan.tokens.describe(unnamed)}. Use the tokenizer that the adapter was "
            "trained with."
        )
    if own:
        warnings.append(
            f"{len(own)} trained row(s) of {stored.module} belong to tokens that only the adapter's "
            f"tokenizer names; they keep their ids: {plan.tokens.describe(own)}. Use that tokenizer."
        )
    return warnings


def _warn_loaders(summary: Mapping[str, float]) -> str:
    count = sum(int(value) for name, value in summary.items() if name.endswith(".carried"))
    return (
        f"{count} trained token row(s) were transferred. PEFT loads them; vLLM and llama.cpp refuse "
        "adapters that have any. To use one of those, merge it with PEFT (merge_and_unload), or set "
        "output.token_rows=false."
    )


def _warn_rounding(module: str, error: float, dtype: str) -> str:
    return (
        f"Storing the trained rows of {module} as {dtype} changes what was trained by {error:.0%} of its "
        "norm; set output.dtype to float32 to preserve it."
    )
