"""Token tables (embedding and LM head) of two bases, and which of them a trained table applies to in PEFT.

A base has one table for input and output (tied) or two. In PEFT, single rows trained in a tied embedding
apply to the head too, but a whole trained table is a copy for one of them; reading and writing both follow
this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from rebase.evidence.inputs import LoadedInputs
from rebase.lora.token_rows import (
    LM_HEAD_NAMES,
    ChangedRows,
    EmbeddingRole,
    EmbeddingTable,
    find_table_name,
    get_embedding_role,
)
from rebase.lora.trained_tables import StoredTable
from rebase.models.empty_model import build_model_config


@dataclass(frozen=True, slots=True)
class TrainedTable:
    """A trained table of the adapter, and the tables of its base it applies to: both if they are tied."""

    stored: StoredTable
    roles: tuple[EmbeddingRole, ...]


def group_tables(inputs: LoadedInputs) -> tuple[tuple[TrainedTable, ...], list[StoredTable]]:
    """(trained tables, tables that one of the bases lacks), following how PEFT applies them to the source.

    With tied embeddings, single rows of the embedding apply to both, unless the head has rows of its own; so
    does a whole table that PEFT loads into the base itself.
    """
    tied = is_tied(inputs.source.config)
    by_role: dict[EmbeddingRole, StoredTable] = {}
    unknown: list[StoredTable] = []
    for stored in inputs.adapter.tables:
        role = get_embedding_role(inputs.source.architecture, stored.module)
        if role is None or role in by_role or not has_both_tables(inputs, role):
            unknown.append(stored)
        else:
            by_role[role] = stored
    both: tuple[EmbeddingRole, ...] = ("input", "output")
    first = by_role.get("input", by_role.get("output"))
    if (
        first is not None
        and tied
        and all(has_both_tables(inputs, side) for side in both)
        and _is_tied_table(by_role)
    ):
        return (TrainedTable(first, both),), unknown
    return tuple(TrainedTable(stored, (side,)) for side, stored in sorted(by_role.items())), unknown


def _is_tied_table(by_role: Mapping[EmbeddingRole, StoredTable]) -> bool:
    """Do these tables apply to the single table of a tied base?"""
    lm_head, embedding = by_role.get("output"), by_role.get("input")
    if any(stored.tied for stored in by_role.values()) or (
        embedding is not None and not embedding.named_in_config
    ):
        return True
    if embedding is None:
        return lm_head is not None and not lm_head.named_in_config
    if embedding.ids is None:
        return False  # PEFT copies the embedding alone and leaves the head as it is
    return lm_head is None or lm_head.ids == embedding.ids or not lm_head.named_in_config


def list_target_tables(
    roles: tuple[EmbeddingRole, ...], row_survey: ChangedRows, rows: int, tied: bool
) -> Iterator[tuple[EmbeddingRole, Tensor | None]]:
    """The target's tables to write, each with the ids of its rows, or None for the whole table.

    On a tied target, PEFT applies single rows of the embedding to the head too. So a change of the embedding
    alone is stored as a whole table, and a change of both as single rows of the embedding.
    """
    single = row_survey.choose_storage(rows) == "rows"
    if tied and len(roles) == 2 and single:
        yield "input", row_survey.target_ids
        return
    for role in roles:
        yield role, row_survey.target_ids if single and not (tied and role == "input") else None


def has_both_tables(inputs: LoadedInputs, role: EmbeddingRole) -> bool:
    """Do both bases have this table, with a row of the hidden width per token?"""
    tables = (_find_table(inputs, "source", role), _find_table(inputs, "target", role))
    return all(table is not None and table.width == inputs.source.architecture.hidden for table in tables)


def _find_table(
    inputs: LoadedInputs, side: Literal["source", "target"], role: EmbeddingRole
) -> EmbeddingTable | None:
    """A table of a base, or None; input and output are the same one if the base ties them."""
    base, reader = (
        (inputs.source, inputs.source_reader) if side == "source" else (inputs.target, inputs.target_reader)
    )
    name = find_table_name(base.architecture, reader.infos(), "input" if is_tied(base.config) else role)
    return None if name is None else EmbeddingTable(reader, name)


def get_table(inputs: LoadedInputs, side: Literal["source", "target"], role: EmbeddingRole) -> EmbeddingTable:
    """A table that exists (see `has_both_tables`). Raises ValueError otherwise."""
    table = _find_table(inputs, side, role)
    if table is None:
        raise ValueError(f"the {side} base has no {role} table")
    return table


def is_tied(config: Mapping[str, Any]) -> bool:
    """Are head and embedding tied? The default differs by family, so this uses transformers' config class."""
    return bool(getattr(build_model_config(config), "tie_word_embeddings", False))


def get_module_name(inputs: LoadedInputs, role: EmbeddingRole) -> str:
    """The table's module name in the target, as in transformers."""
    architecture = inputs.target.architecture
    return f"{architecture.root}{architecture.family.embedding}" if role == "input" else LM_HEAD_NAMES[0]
