"""How much of an adapter's effect stays behind: by norm, and on the logits of the source where it can run.

By norm: every trained part counts with its relative change r = ‖D‖_F/‖W‖_F, and the share that is lost
is √(Σ_lost r² / Σ_all r²). `lost_logits` measures it on the logits of the source, which decides where both
exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rebase.conversion.extra_parts import ExtraParts, ExtraPartsPlan, split_parts
from rebase.conversion.lost_logits import measure_on_logits
from rebase.conversion.parameters import compute_change
from rebase.conversion.token_tables import TrainedTable, get_table
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import LeftBehind, VocabularyLora
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank
from rebase.lora.token_rows import EmbeddingTable, get_embedding_role, iter_row_deltas
from rebase.methods.findings import Finding, Weight
from rebase.precheck.measurements import select_probe_pairs

MAX_LOST_SHARE = 0.05  # above this a conversion is never called compatible
MAX_LISTED = 5
_HALF = 0.5  # above this the result is effectively another adapter
_SAMPLED_ROWS = 1024  # rows of a token table whose mean norm stands for all


@dataclass(frozen=True, slots=True)
class LostEffect:
    """The share of the adapter's effect that is lost, in [0, 1]; `on_logits` is None where the source is too
    large to run here, or cannot be run."""

    by_norm: float
    on_logits: float | None

    @property
    def share(self) -> float:
        """The measurement that decides."""
        return self.by_norm if self.on_logits is None else self.on_logits

    def to_measurements(self) -> dict[str, float]:
        """As the pre-check reports it."""
        measured = {"lost_share_norm": self.by_norm}
        return measured if self.on_logits is None else measured | {"lost_share_logits": self.on_logits}


def measure_lost_effect(
    inputs: LoadedInputs, plan: ExtraPartsPlan, device: torch.device
) -> LostEffect | None:
    """None if nothing is lost, or only LoRA modules without a place in the target, which the pre-check weighs
    by itself. Reads base weights at a few sites only, unless the source is small enough to
    run."""
    if not (plan.left_behind or inputs.adapter.dense_sites):
        return None
    return LostEffect(_measure_by_norm(inputs, plan), measure_on_logits(inputs, plan, device))


def find_losses(plan: ExtraPartsPlan, lost: LostEffect | None, inputs: LoadedInputs) -> Iterator[Finding]:
    """The findings about what is left behind, for the verdict."""
    if (head := plan.lost_head) is not None:
        text = (
            f"The adapter's trained head {head.module} cannot be transferred ({head.reason}), and without it "
            "the adapter does not do its task. Train a head on the target."
        )
        yield Finding("task_head_lost", text, "blocking")
    if plan.tokens.has_lost_new_tokens:
        text = "The adapter added tokens that the target does not have; prompts that use them will not work."
        yield Finding("new_tokens_lost", text, "doubt")
    for kind, code in (
        ("LoRA on experts", "experts_lost"),
        ("LoRA outside the language model", "tower_lost"),
    ):
        if lost_parts := [part for part in plan.left_behind if part.kind == kind]:
            names = ", ".join(part.module for part in lost_parts[:MAX_LISTED])
            text = f"{kind} is lost in {len(lost_parts)} module(s) ({names}): {lost_parts[0].reason}."
            yield Finding(code, text, "doubt")
    if lost is None:
        return
    where = "on the source's logits" if lost.on_logits is not None else "by norm"
    weight: Weight = "doubt" if lost.share > MAX_LOST_SHARE else "info"
    parts = ", ".join(_describe_losses(plan, inputs))
    text = f"{lost.share:.0%} of the adapter's effect is lost ({where}): {parts}."
    yield Finding("left_behind", text, "blocking" if lost.share > _HALF else weight)


def _describe_losses(plan: ExtraPartsPlan, inputs: LoadedInputs) -> Iterator[str]:
    if inputs.pairing.dropped:
        yield f"LoRA on {len(inputs.pairing.dropped)} module(s) without a place in the target"
    if inputs.adapter.dense_sites:
        yield "what its dense updates (DoRA or another type than LoRA) have beyond their rank"
    kinds: dict[str, list[LeftBehind]] = {}
    for part in plan.left_behind:
        kinds.setdefault(part.kind, []).append(part)
    for kind, parts in kinds.items():
        names = ", ".join(part.module for part in parts[:MAX_LISTED])
        rest = f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
        yield f"{kind} of {names}{rest}"


def _measure_by_norm(inputs: LoadedInputs, plan: ExtraPartsPlan) -> float:
    carried_parts, lost_parts = split_parts(inputs, plan)
    carried, lost = _sum_extra(inputs, plan, carried_parts, is_carried=True)
    more_carried, more_lost = _sum_extra(inputs, plan, lost_parts, is_carried=False)
    per_site, lost_per_site = _measure_sites(inputs)
    carried += more_carried + per_site * len(inputs.pairing.pairs)
    lost += more_lost + lost_per_site * len(inputs.pairing.pairs)
    lost += (per_site + lost_per_site) * len(inputs.pairing.dropped)
    return math.sqrt(lost / (lost + carried)) if lost > 0.0 else 0.0


def _measure_sites(inputs: LoadedInputs) -> tuple[float, float]:
    """Mean r² of the sites' updates as transferred, and of what DoRA's truncation loses, at a few sites."""
    carried, lost = [], []
    for pair in select_probe_pairs(inputs.pairing.pairs):
        weight_norm = float(torch.linalg.vector_norm(inputs.source.weight(pair.source)))
        if weight_norm == 0.0:
            continue
        squared = (frobenius(inputs.adapter.delta(pair.source)) / weight_norm) ** 2
        energy = inputs.adapter.measurements.get(pair.source, {}).get("dora_lost_energy", 0.0)
        carried.append(squared)
        lost.append(squared * energy / (1.0 - energy) if energy < 1.0 else squared)
    count = max(len(carried), 1)
    return math.fsum(carried) / count, math.fsum(lost) / count


def _sum_extra(
    inputs: LoadedInputs, plan: ExtraPartsPlan, parts: ExtraParts, *, is_carried: bool
) -> tuple[float, float]:
    """(Σ r² carried, Σ r² lost) of these parts; single rows of a carried table may be lost."""
    carried, lost = 0.0, 0.0
    for stored in parts.parameters:
        change = compute_change(inputs, stored)
        if change is None or stored.base_name is None:
            continue
        base_norm = float(inputs.source.read_tensor(stored.base_name).norm())
        squared = (float(change.norm()) / max(base_norm, 1e-12)) ** 2
        carried, lost = (carried + squared, lost) if is_carried else (carried, lost + squared)
    for lora in parts.loras:
        update = inputs.adapter.read_vocabulary_lora(lora)
        squared = frobenius(update) ** 2 / (update.shape[0] * _estimate_row_energy(inputs, lora.module))
        share = _compute_lost_energy(plan, lora, update) if is_carried else 1.0
        carried, lost = carried + squared * (1.0 - share), lost + squared * share
    for trained in parts.tables:
        kept, missing = _sum_rows(inputs, plan, trained, is_carried=is_carried)
        carried, lost = carried + kept, lost + missing
    return carried, lost


def _compute_lost_energy(plan: ExtraPartsPlan, lora: VocabularyLora, update: LowRank) -> float:
    row_map = next(part.row_map for part in plan.vocabulary_loras if part.stored == lora)
    whole = frobenius(update) ** 2
    return frobenius(LowRank(update.B[row_map < 0], update.A)) ** 2 / whole if whole else 0.0


def _sum_rows(
    inputs: LoadedInputs, plan: ExtraPartsPlan, trained: TrainedTable, *, is_carried: bool
) -> tuple[float, float]:
    """(carried, lost) r² of a table: mean over its changed rows, each relative to the mean row."""
    base = get_table(inputs, "source", trained.roles[0])
    energy = _estimate_row_energy(inputs, trained.stored.module)
    carried = lost = 0.0
    rows = 0
    for ids, change in iter_row_deltas(inputs.adapter, trained.stored, base):
        squared = change.square().sum(1)
        has_row = (plan.tokens.row_map[ids] >= 0) if is_carried else torch.zeros_like(ids, dtype=torch.bool)
        carried += float(squared[has_row].sum())
        lost += float(squared[~has_row].sum())
        rows += ids.numel()
    scale = max(rows, 1) * energy
    return carried / scale, lost / scale


def _estimate_row_energy(inputs: LoadedInputs, module: str) -> float:
    """Mean squared norm of the source's rows, from the first ones."""
    role = get_embedding_role(inputs.source.architecture, module) or "input"
    table: EmbeddingTable = get_table(inputs, "source", role)
    rows = table.read(0, min(table.rows, _SAMPLED_ROWS)).float()
    return max(float(rows.square().sum(1).mean()), 1e-12)
