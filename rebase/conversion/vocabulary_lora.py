"""Transfers LoRA on the embedding or the output head: its rows move to the same tokens of the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.conversion.token_map import TokenMap
from rebase.conversion.token_tables import get_module_name, get_table, has_both_tables
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import LeftBehind, VocabularyLora
from rebase.lora.extra_writer import add_vocabulary_lora
from rebase.lora.linalg import frobenius, truncate
from rebase.lora.low_rank import LowRank
from rebase.lora.token_rows import EmbeddingRole, get_embedding_role
from rebase.lora.writer import BuiltAdapter

_KIND = "LoRA on token rows"


@dataclass(frozen=True, slots=True)
class PlannedVocabularyLora:
    """`row_map`: the target's row for each of the adapter's, or −1."""

    stored: VocabularyLora
    role: EmbeddingRole
    row_map: Tensor

    def list_lost_rows(self) -> list[int]:
        """The adapter's rows whose token the target lacks."""
        lost: list[int] = (self.row_map < 0).nonzero().flatten().tolist()
        return lost


def plan_vocabulary_loras(
    inputs: LoadedInputs, tokens: TokenMap | None, obstacle: str | None
) -> tuple[tuple[PlannedVocabularyLora, ...], list[LeftBehind]]:
    """(updates to transfer, those left behind). `obstacle`: why none can be transferred."""
    planned: list[PlannedVocabularyLora] = []
    left_behind: list[LeftBehind] = []
    for stored in inputs.adapter.vocabulary_loras:
        role = get_embedding_role(inputs.source.architecture, stored.module)
        if obstacle is not None:
            left_behind.append(LeftBehind(stored.module, _KIND, obstacle))
        elif tokens is None:
            reason = "one of the two bases has no readable tokenizer.json"
            left_behind.append(LeftBehind(stored.module, _KIND, reason))
        elif role is None or not has_both_tables(inputs, role):
            left_behind.append(LeftBehind(stored.module, _KIND, "the bases have no such table of tokens"))
        else:
            row_map = tokens.map_rows(stored.rows, get_table(inputs, "target", role).rows)
            planned.append(PlannedVocabularyLora(stored, role, row_map))
    return tuple(planned), left_behind


def compute_lost_share(update: LowRank, row_map: Tensor) -> float:
    """Share of ‖ΔE‖_F in rows without a counterpart, in [0, 1]."""
    whole = frobenius(update)
    return frobenius(LowRank(update.B[row_map < 0], update.A)) / whole if whole else 0.0


def transfer_vocabulary_loras(
    planned: Sequence[PlannedVocabularyLora],
    inputs: LoadedInputs,
    built: BuiltAdapter,
    dtype: str,
    max_rank: int | None,
) -> tuple[BuiltAdapter, dict[str, float]]:
    """(the adapter with these updates, measurements). Raises MalformedAdapter, VerificationFailed."""
    summary: dict[str, float] = {}
    for part in planned:
        update = inputs.adapter.read_vocabulary_lora(part.stored)
        if max_rank is not None and update.rank > max_rank:
            update, lost_energy = truncate(update, max_rank)
            summary[f"vocabulary_lora.{part.role}.truncation_lost_energy"] = lost_energy
        rows = get_table(inputs, "target", part.role).rows
        has_token = part.row_map >= 0
        moved = torch.zeros(rows, update.rank)
        moved[part.row_map[has_token]] = update.B[has_token]
        built = add_vocabulary_lora(
            built,
            get_module_name(inputs, part.role),
            LowRank(moved, update.A),
            is_embedding=part.role == "input",
            dtype=dtype,
        )
        summary |= {
            f"vocabulary_lora.{part.role}.carried": float(has_token.sum()),
            f"vocabulary_lora.{part.role}.without_counterpart": float((~has_token).sum()),
            f"vocabulary_lora.{part.role}.lost_share": compute_lost_share(update, part.row_map),
        }
    return built, summary
