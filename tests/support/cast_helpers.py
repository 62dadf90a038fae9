"""CAST as the paper runs it: a wrapper around each adapted module, with the source's adapter frozen inside.

Written from the paper alone, over PEFT's own tensors, as a witness for what is folded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rebase.lora.low_rank import Role
from rebase.methods.base import SiteMaps, SitePair

# Role → module of a layer, and which of how many equal parts of its outputs.
PLACES: dict[str, dict[Role, tuple[str, int, int]]] = {
    "llama": {
        **{role: (f"model.layers.{{}}.self_attn.{role.value}", 0, 1) for role in (Role.Q, Role.K, Role.V,
        Role.O)}, **{role: (f"model.layers.{{}}.mlp.{role.value}", 0, 1) for role in (Role.GATE, Role.UP,
        Role.DOWN)},
    },
    "gpt2": {
        **{role: ("transformer.h.{}.attn.c_attn", at, 3) for at, role in enumerate((Role.Q, Role.K, Role.V))},
        Role.O: ("transformer.h.{}.attn.c_proj", 0, 1),
        Role.UP: ("transformer.h.{}.mlp.c_fc", 0, 1),
        Role.DOWN: ("transformer.h.{}.mlp.c_proj", 0, 1),
    },
}  # fmt: skip
PLACES["mistral"] = PLACES["llama"]


@dataclass(frozen=True)
class Cartridge:
    """One frozen source update s·B·A between two heads; writes to one of `parts` equal parts of the
    outputs."""

    A: Tensor
    B: Tensor
    scale: float
    heads: SiteMaps
    part: int
    parts: int


class Cast(nn.Module):
    """A module of the target with its cartridges: delta_t = M_out · s · B · A · M_in · x_t."""

    def __init__(self, module: nn.Module, cartridges: Sequence[Cartridge]) -> None:
        super().__init__()
        self.module, self.cartridges = module, cartridges

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)
        pieces = {}
        for cartridge in self.cartridges:
            seen = x @ cartridge.heads.M_in.T
            delta = cartridge.scale * (seen @ cartridge.A.T @ cartridge.B.T)
            pieces[cartridge.part] = delta @ cartridge.heads.M_out.T
        size = y.shape[-1] // self.cartridges[0].parts
        zeros = y.new_zeros(*y.shape[:-1], size)
        return y + torch.cat([pieces.get(n, zeros) for n in range(self.cartridges[0].parts)], dim=-1)


def wrap(target: Any, adapter: Path, families: tuple[str, str], heads: Mapping[SitePair, SiteMaps]) -> Any:
    """The target (a transformers model, changed in place) with the adapter of the source in cartridges."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    found: dict[str, list[Cartridge]] = {}
    for pair, own in heads.items():
        place, part, parts = PLACES[families[0]][pair.source.role]
        name = f"base_model.model.{place.format(pair.source.layer)}"
        A, B = (tensors[f"{name}.lora_{letter}.weight"] for letter in "AB")
        place, to_part, to_parts = PLACES[families[1]][pair.target.role]
        cartridge = Cartridge(
            A, B.chunk(parts)[part], pair.scale * config["lora_alpha"] / config["r"], own, to_part, to_parts
        )
        found.setdefault(place.format(pair.target.layer), []).append(cartridge)
    for name, cartridges in found.items():
        parent, _, last = name.rpartition(".")
        setattr(target.get_submodule(parent), last, Cast(target.get_submodule(name), cartridges))
    return target
