"""Transfers LoRA on the experts of a mixture, to a target whose experts have the same number and shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import ExpertLora, LeftBehind
from rebase.lora.writer import BuiltAdapter, add_expert_loras
from rebase.models.architecture import Architecture

_KIND = "LoRA on experts"


def plan_expert_loras(
    inputs: LoadedInputs, obstacle: str | None
) -> tuple[tuple[ExpertLora, ...], list[LeftBehind]]:
    """(updates to transfer, those left behind): all or none. `obstacle`: why none can be transferred."""
    loras = inputs.adapter.contents.expert_loras
    if not loras:
        return (), []
    source, target = inputs.source.architecture, inputs.target.architecture
    if obstacle is None and _get_expert_shapes(source) != _get_expert_shapes(target):
        obstacle = "the experts of the two bases differ in number or shape"
    if obstacle is None and source.root != target.root:
        obstacle = "the layers of the two bases have other names"
    if obstacle is None:
        return loras, []
    return (), [LeftBehind(lora.module, _KIND, obstacle) for lora in loras]


def transfer_expert_loras(
    planned: Sequence[ExpertLora], inputs: LoadedInputs, built: BuiltAdapter, dtype: str
) -> tuple[BuiltAdapter, dict[str, float]]:
    """(the adapter with these updates, measurements). Raises MalformedAdapter, VerificationFailed."""
    if not planned:
        return built, {}
    contents = inputs.adapter.contents
    built = add_expert_loras(
        built,
        {lora.module: inputs.adapter.read_expert_lora(lora) for lora in planned},
        ranks=contents.expert_ranks,
        dtype=dtype,
    )
    return built, {"expert_loras.carried": float(len(planned))}


def _get_expert_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes by name; the number of layers is part of the names."""
    if architecture.found is None:
        return {}
    prefix = re.escape(architecture.family.layers)
    return {
        re.sub(rf"^{prefix}\.", "", name): shape for name, shape in architecture.found.expert_shapes.items()
    }
