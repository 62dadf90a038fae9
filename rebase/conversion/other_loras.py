"""Transfers LoRA that is on no linear module of the decoder layers: on the experts of a mixture, to a target
whose experts have the same number and shapes, and on vision or audio towers and projectors of equal shape."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import ExpertLora, LeftBehind, OtherLora
from rebase.lora.extra_writer import add_expert_loras, add_module_loras
from rebase.lora.writer import BuiltAdapter
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


def plan_other_loras(
    inputs: LoadedInputs, obstacle: str | None
) -> tuple[tuple[OtherLora, ...], list[LeftBehind]]:
    """(updates to transfer, those left behind)."""
    planned: list[OtherLora] = []
    left_behind: list[LeftBehind] = []
    for lora in inputs.adapter.contents.other_loras:
        tensor = inputs.target.find_outer_tensor(f"{lora.module}.weight")
        reason = obstacle
        if reason is None and tensor is None:
            reason = "the target has no such module"
        if reason is None and tensor is not None:
            shapes = inputs.source.tensor_shape(lora.base_name), inputs.target.tensor_shape(tensor)
            if shapes[0] != shapes[1]:
                reason = (
                    f"its shape is {list(shapes[0])} in the source base and {list(shapes[1])} in the target"
                )
        if reason is None:
            planned.append(lora)
        else:
            left_behind.append(LeftBehind(lora.module, "LoRA outside the language model", reason))
    return tuple(planned), left_behind


def transfer_other_loras(
    planned: Sequence[OtherLora], inputs: LoadedInputs, built: BuiltAdapter, dtype: str
) -> tuple[BuiltAdapter, dict[str, float]]:
    """(the adapter with these updates, measurements). Raises MalformedAdapter, VerificationFailed."""
    if not planned:
        return built, {}
    updates = {lora.module: inputs.adapter.read_expert_lora(lora) for lora in planned}
    return add_module_loras(built, updates, dtype), {"other_loras.carried": float(len(planned))}


def _get_expert_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes by name; the number of layers is part of the names."""
    if architecture.found is None:
        return {}
    prefix = re.escape(architecture.family.layers)
    return {
        re.sub(rf"^{prefix}\.", "", name): shape for name, shape in architecture.found.expert_shapes.items()
    }
