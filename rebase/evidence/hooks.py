"""Captures activations with forward hooks that keep only the rows of the chosen positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from rebase.evidence.hook_points import RESIDUAL_STREAM, HookPoint
from rebase.evidence.paired_text import Passage
from rebase.lora.low_rank import Side
from rebase.models.causal_lm import CausalLM


@torch.no_grad()
def capture_rows(
    base: CausalLM, side: Side, passage: Passage, hook_points: Iterable[HookPoint]
) -> dict[HookPoint, Tensor]:
    """Activations at the passage's paired positions: hook point → (positions, width) float32.

    Biases are subtracted from outputs: they are the same for every token, and the update does not change
    them.
    """
    captured: dict[HookPoint, Tensor] = {}
    positions = passage.paired_positions(side).to(base.device)
    modules: dict[str, list[HookPoint]] = {}
    stream_points: list[HookPoint] = []
    for hook_point in hook_points:
        if hook_point.name == RESIDUAL_STREAM:
            stream_points.append(hook_point)
        else:
            modules.setdefault(base.architecture.get_module_name(hook_point.site), []).append(hook_point)
    with ExitStack() as hooks:
        for hook_point in stream_points:
            hooks.callback(
                _get_layer(base, hook_point.layer)
                .register_forward_hook(_make_stream_hook(hook_point, positions, captured))
                .remove
            )
        for module_points in modules.values():
            module = base.get_module(module_points[0].site)
            handle = module.register_forward_hook(_make_module_hook(base, module_points, positions, captured))
            hooks.callback(handle.remove)
        _run_body(base, passage.ids(side))
    return captured


@torch.no_grad()
def capture_layers(base: CausalLM, side: Side, passage: Passage) -> list[Tensor]:
    """The residual stream after each layer at the paired positions: (positions, hidden) float32 each."""
    positions = passage.paired_positions(side).to(base.device)
    captured: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        captured.append(_get_hidden_states(output)[0, positions].float())

    with ExitStack() as hooks:
        for layer in range(base.architecture.layers):
            hooks.callback(_get_layer(base, layer).register_forward_hook(hook).remove)
        _run_body(base, passage.ids(side))
    return captured


def _get_layer(base: CausalLM, layer: int) -> Any:
    return base.model.get_submodule(
        f"{base.architecture.family.root}{base.architecture.get_layer_name(layer)}"
    )


def _get_hidden_states(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _make_stream_hook(hook_point: HookPoint, positions: Tensor, captured: dict[HookPoint, Tensor]) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        captured[hook_point] = _get_hidden_states(output)[0, positions].float()

    return hook


def _run_body(base: CausalLM, ids: Sequence[int]) -> None:
    """The body alone: no logits, which for a large vocabulary cost more than the layers."""
    base.model.base_model(torch.tensor([list(ids)], device=base.device), use_cache=False)


def _make_module_hook(
    base: CausalLM, hook_points: list[HookPoint], positions: Tensor, captured: dict[HookPoint, Tensor]
) -> Any:
    def hook(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for hook_point in hook_points:
            if hook_point.port == "in":
                captured[hook_point] = inputs[0][0, positions].float()
                continue
            rows, bias = base.get_output_rows(hook_point.site), base.bias(hook_point.site)
            site_output = output[0, positions].float()
            site_output = site_output if rows is None else site_output[:, rows]
            captured[hook_point] = site_output if bias is None else site_output - bias

    return hook
