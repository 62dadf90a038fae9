"""Activations as a model runs: forward hooks that keep the rows of chosen positions and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from rebase.lora.low_rank import Side
from workers.activations.ports import STREAM, Place
from workers.activations.text import Passage
from workers.models import TextModel


@torch.no_grad()
def rows_at(base: TextModel, side: Side, passage: Passage, places: Iterable[Place]) -> dict[Place, Tensor]:
    """What the model reads or writes at the passage's paired positions: place → (positions, width) float32.

    A bias is left out of what a site writes: it is the same at every token, and the update does not touch it.
    """
    found: dict[Place, Tensor] = {}
    at = passage.at(side).to(base.device)
    modules: dict[str, list[Place]] = {}
    layers: list[Place] = []
    for place in places:
        if place.name == STREAM:
            layers.append(place)
        else:
            modules.setdefault(base.architecture.module(place.site), []).append(place)
    with ExitStack() as hooks:
        for place in layers:
            hooks.callback(
                _layer(base, place.layer).register_forward_hook(_streaming(place, at, found)).remove
            )
        for wanted in modules.values():
            module = base.module(wanted[0].site)
            handle = module.register_forward_hook(_keeping(base, wanted, at, found))
            hooks.callback(handle.remove)
        _run(base, passage.ids(side))
    return found


@torch.no_grad()
def layers_at(base: TextModel, side: Side, passage: Passage) -> list[Tensor]:
    """The residual stream after each layer at the paired positions: (positions, hidden) float32 each."""
    at = passage.at(side).to(base.device)
    found: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found.append(_hidden(output)[0, at].float())

    with ExitStack() as hooks:
        for layer in range(base.architecture.layers):
            hooks.callback(_layer(base, layer).register_forward_hook(keep).remove)
        _run(base, passage.ids(side))
    return found


def _layer(base: TextModel, layer: int) -> Any:
    return base.model.get_submodule(f"{base.architecture.family.root}{base.architecture.stem(layer)}")


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _streaming(place: Place, at: Tensor, found: dict[Place, Tensor]) -> Any:
    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        found[place] = _hidden(output)[0, at].float()

    return keep


def _run(base: TextModel, ids: Sequence[int]) -> None:
    """The body alone: no logits, which for a large vocabulary cost more than the layers."""
    base.model.base_model(torch.tensor([list(ids)], device=base.device), use_cache=False)


def _keeping(base: TextModel, wanted: list[Place], at: Tensor, found: dict[Place, Tensor]) -> Any:
    def keep(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for place in wanted:
            if place.port == "in":
                found[place] = inputs[0][0, at].float()
                continue
            rows, bias = base.rows(place.site), base.bias(place.site)
            written = output[0, at].float()
            written = written if rows is None else written[:, rows]
            found[place] = written if bias is None else written - bias

    return keep
