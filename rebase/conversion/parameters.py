"""Transfers parameters that an adapter trained fully: norms, biases, heads and whole modules.

Like token rows they are transferred as a change, D = trained − source base, added to the target's own values;
a head that the bases lack is copied. Both need a method that keeps coordinates and parameters of equal shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.evidence.inputs import LoadedInputs
from rebase.lora.extra_parts import LeftBehind, StoredParameter
from rebase.lora.extra_writer import OutputParameter, add_parameters
from rebase.lora.writer import BuiltAdapter
from rebase.methods.registry import get_method

_KINDS = {
    "head": "task head",
    "bias": "trained bias",
    "norm": "trained norm",
    "module": "fully trained module",
}


@dataclass(frozen=True, slots=True)
class PlannedParameter:
    """A parameter to transfer. `target_tensor`: the target checkpoint's tensor to add the change to, None for
    a head; `target_name`: its name in the model that transformers builds."""

    stored: StoredParameter
    target_tensor: str | None
    target_name: str


def find_coordinate_obstacle(inputs: LoadedInputs, method: str) -> str | None:
    """Why this method cannot transfer vectors and token rows between these bases; None if it can."""
    source, target = inputs.source.embedding_shape[1], inputs.target.embedding_shape[1]
    if source != target:
        return f"the hidden size is {source} in the source base and {target} in the target"
    if not get_method(method).keeps_coordinates:
        return f"the method {method} changes coordinates, and there is no map for this part"
    return None


def plan_parameters(
    inputs: LoadedInputs, obstacle: str | None
) -> tuple[tuple[PlannedParameter, ...], list[LeftBehind]]:
    """(parameters to transfer, those left behind). `obstacle`: why none can be transferred."""
    planned: list[PlannedParameter] = []
    left_behind: list[LeftBehind] = []
    for stored in inputs.adapter.parameters:
        if obstacle is None and stored.base_name is None:
            planned.append(PlannedParameter(stored, None, stored.name))
            continue
        if obstacle is None:
            target_tensor, reason = _find_counterpart(inputs, stored)
            if target_tensor is not None:
                name = inputs.target.get_parameter_name(target_tensor)
                planned.append(PlannedParameter(stored, target_tensor, name))
                continue
        else:
            reason = obstacle
        if compute_change(inputs, stored) is not None:
            left_behind.append(LeftBehind(stored.name, _KINDS[stored.kind], reason))
    return tuple(planned), left_behind


def compute_change(inputs: LoadedInputs, stored: StoredParameter) -> Tensor | None:
    """D in float32; None if the stored values are the base's, rounded to the adapter's dtype."""
    trained = inputs.adapter.read_parameter(stored)
    if stored.base_name is None:
        return trained
    base = inputs.source.read_tensor(stored.base_name)
    if torch.equal(trained, inputs.adapter.round_like(stored, base)):
        return None
    return trained - base


def transfer_parameters(
    planned: Sequence[PlannedParameter], inputs: LoadedInputs, built: BuiltAdapter, dtype: str
) -> tuple[BuiltAdapter, dict[str, float]]:
    """(the adapter with the changed parameters, measurements).

    Raises MalformedAdapter, VerificationFailed.
    """
    outputs: list[OutputParameter] = []
    for parameter in planned:
        change = compute_change(inputs, parameter.stored)
        if change is None:
            continue
        target = parameter.target_tensor
        value = change if target is None else inputs.target.read_tensor(target) + change
        outputs.append(OutputParameter(parameter.target_name, value))
    if not outputs:
        return built, {}
    completed = [*outputs, *_complete_modules(outputs, inputs, built)]
    return add_parameters(built, completed, dtype), {"parameters.carried": float(len(outputs))}


def _complete_modules(
    outputs: Sequence[OutputParameter], inputs: LoadedInputs, built: BuiltAdapter
) -> list[OutputParameter]:
    """The target's own values of what PEFT expects beside the trained parameters: the other parameter of a
    module, and the biases of every adapted module as soon as one of them is trained."""
    names = {output.name for output in outputs}
    siblings = {f"{output.module}.{other}" for output in outputs for other in ("weight", "bias")}
    if any(output.parameter == "bias" and built.adapts(output.module) for output in outputs):
        siblings |= {f"{module}.bias" for module in built.modules}
    siblings = {
        name
        for name in siblings
        if not (name.endswith(".weight") and built.adapts(name.removesuffix(".weight")))
    }
    tensors = {name: inputs.target.find_tensor(name) for name in sorted(siblings - names)}
    return [
        OutputParameter(name, inputs.target.read_tensor(tensor))
        for name, tensor in tensors.items()
        if tensor is not None
    ]


def _find_counterpart(inputs: LoadedInputs, stored: StoredParameter) -> tuple[str | None, str]:
    """(the target's tensor for the same parameter, why there is none)."""
    source, target = inputs.source, inputs.target
    assert stored.base_name is not None
    if _is_in_layer(stored.name, source.architecture.family.layers) and not _layers_are_paired_in_order(
        inputs
    ):
        return None, "the bases' layers do not correspond one to one"
    tensor = target.find_tensor(source.get_parameter_name(stored.base_name))
    if tensor is None:
        return None, "the target has no such module"
    shape = target.tensor_shape(tensor)
    if shape != stored.shape:
        return None, f"its shape is {list(stored.shape)} in the source base and {list(shape)} in the target"
    return tensor, ""


def _is_in_layer(name: str, layers: str) -> bool:
    return re.search(rf"(^|\.){re.escape(layers)}\.\d+\.", name) is not None


def _layers_are_paired_in_order(inputs: LoadedInputs) -> bool:
    return inputs.source.layers == inputs.target.layers and all(
        pair.source.layer == pair.target.layer for pair in inputs.pairing.pairs
    )
