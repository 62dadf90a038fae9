"""Everything that an adapter trained besides LoRA on its layers' modules: planned, transferred, reported.

Token rows, LoRA on token tables, norms, biases, heads and whole modules are transferred where the method
keeps coordinates and the shapes agree. What is not is named with its reason, and lowers the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from rebase.conversion.other_loras import (
    plan_expert_loras,
    plan_other_loras,
    transfer_expert_loras,
    transfer_other_loras,
)
from rebase.conversion.parameters import (
    PlannedParameter,
    find_coordinate_obstacle,
    plan_parameters,
    transfer_parameters,
)
from rebase.conversion.token_map import TokenMap
from rebase.conversion.token_rows import TokenPlan, plan_tokens, transfer_tokens
from rebase.conversion.token_tables import TrainedTable, group_tables
from rebase.conversion.vocabulary_lora import (
    PlannedVocabularyLora,
    plan_vocabulary_loras,
    transfer_vocabulary_loras,
)
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import (
    ExpertLora,
    LeftBehind,
    OtherLora,
    StoredParameter,
    VocabularyLora,
)
from rebase.lora.writer import BuiltAdapter
from rebase.schemas.conversions import OutputSpec

_PLAIN = "the request asks for a plain LoRA (output.token_rows=false)"


@dataclass(frozen=True, slots=True)
class ExtraPartsPlan:
    """What to transfer besides the sites, and what is left behind."""

    tokens: TokenPlan
    vocabulary_loras: tuple[PlannedVocabularyLora, ...]
    parameters: tuple[PlannedParameter, ...]
    expert_loras: tuple[ExpertLora, ...]
    other_loras: tuple[OtherLora, ...]
    left_behind: tuple[LeftBehind, ...]
    warnings: tuple[str, ...] = ()

    @property
    def lost_head(self) -> LeftBehind | None:
        """A task head that is left behind, without which the adapter does nothing."""
        return next((part for part in self.left_behind if part.kind == "task head"), None)


@dataclass(frozen=True, slots=True)
class TransferredParts:
    """The adapter with the transferred parts, measurements about them, and warnings."""

    built: BuiltAdapter
    summary: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExtraParts:
    """The parts of the adapter outside the sites, as carried or lost."""

    tables: tuple[TrainedTable, ...]
    loras: tuple[VocabularyLora, ...]
    parameters: tuple[StoredParameter, ...]


def split_parts(inputs: LoadedInputs, plan: ExtraPartsPlan) -> tuple[ExtraParts, ExtraParts]:
    """(carried, lost)."""
    carried = ExtraParts(
        plan.tokens.tables,
        tuple(part.stored for part in plan.vocabulary_loras),
        tuple(part.stored for part in plan.parameters),
    )
    lost = ExtraParts(
        tuple(part for part in group_tables(inputs)[0] if part not in carried.tables),
        tuple(lora for lora in inputs.adapter.vocabulary_loras if lora not in carried.loras),
        tuple(stored for stored in inputs.adapter.parameters if stored not in carried.parameters),
    )
    return carried, lost


def plan_extra_parts(
    inputs: LoadedInputs, token_map: TokenMap | None, method: str, *, enabled: bool = True
) -> ExtraPartsPlan:
    """Decide from configs, tokenizers and headers what this method can transfer. `enabled=False`: nothing,
    because the request wants an adapter that every loader accepts."""
    adapter = inputs.adapter
    obstacle = find_coordinate_obstacle(inputs, method) if enabled else _PLAIN
    has_rows = bool(adapter.tables or adapter.vocabulary_loras)
    tokens = plan_tokens(inputs, token_map, obstacle)
    loras, lost_loras = plan_vocabulary_loras(inputs, token_map, obstacle)
    parameters, lost_parameters = plan_parameters(inputs, obstacle)
    expert_loras, lost_experts = plan_expert_loras(inputs, obstacle)
    other_loras, lost_others = plan_other_loras(inputs, obstacle)
    return ExtraPartsPlan(
        tokens,
        loras,
        parameters,
        expert_loras,
        other_loras,
        (
            *adapter.left_behind,
            *tokens.left_behind,
            *lost_loras,
            *lost_parameters,
            *lost_experts,
            *lost_others,
        ),
        token_map.warnings if token_map is not None and has_rows else (),
    )


def transfer_extra_parts(
    plan: ExtraPartsPlan, inputs: LoadedInputs, built: BuiltAdapter, output: OutputSpec
) -> TransferredParts:
    """Add the planned parts to the adapter. Raises MalformedAdapter, VerificationFailed."""
    built, lora_summary = transfer_vocabulary_loras(
        plan.vocabulary_loras, inputs, built, output.dtype, output.max_rank
    )
    built, parameter_summary = transfer_parameters(plan.parameters, inputs, built, output.dtype)
    built, other_summary = transfer_other_loras(plan.other_loras, inputs, built, output.dtype)
    built, expert_summary = transfer_expert_loras(plan.expert_loras, inputs, built, output.dtype)
    tokens = transfer_tokens(plan.tokens, inputs, built, output.dtype)
    return TransferredParts(
        tokens.built,
        {**lora_summary, **parameter_summary, **other_summary, **expert_summary, **tokens.summary},
        (*tokens.warnings, *_warn_loaders(lora_summary, parameter_summary, expert_summary)),
    )


def _warn_loaders(
    lora_summary: dict[str, float], parameter_summary: dict[str, float], expert_summary: dict[str, float]
) -> list[str]:
    parts = [
        *(["LoRA on token rows"] if lora_summary else []),
        *(["fully trained parameters"] if parameter_summary else []),
        *(["LoRA on expert parameters"] if expert_summary else []),
    ]
    if not parts:
        return []
    return [
        f"The adapter has {' and '.join(parts)}. PEFT loads them; vLLM and llama.cpp do not. For those, "
        "merge it with PEFT (merge_and_unload), or set output.token_rows=false."
    ]
