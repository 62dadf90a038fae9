"""The hook points of a layer, where activations are captured. Several sites can share an input hook point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rebase.lora.low_rank import Role, RoleName, Side, Site
from rebase.methods.base import Port, SitePair
from rebase.models.weights import ModelWeights

WriteMode = Literal["own", "stream"]
RESIDUAL_STREAM = "stream"  # the residual stream after a layer
_INPUT_POINTS: dict[RoleName, tuple[str, RoleName]] = {
    Role.Q: ("attention_in", Role.Q),
    Role.K: ("attention_in", Role.Q),
    Role.V: ("attention_in", Role.Q),
    Role.O: ("o_in", Role.O),
    Role.GATE: ("mlp_in", Role.UP),
    Role.UP: ("mlp_in", Role.UP),
    Role.DOWN: ("down_in", Role.DOWN),
}


@dataclass(frozen=True, slots=True, order=True)
class HookPoint:
    """`name`: such as `mlp_in`; `role` and `port`: a site at which it can be captured."""

    layer: int
    name: str
    role: RoleName
    port: Port

    @property
    def site(self) -> Site:
        """A site that reads or writes here."""
        return Site(self.layer, self.role)

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}"

    def width(self, base: ModelWeights) -> int:
        """Number of features per token here."""
        o, i = base.shape(self.site)
        return i if self.port == "in" else o


@dataclass(frozen=True, slots=True, order=True)
class HookPair:
    """A hook point of the source and the corresponding one of the target."""

    source: HookPoint
    target: HookPoint

    def on_side(self, side: Side) -> HookPoint:
        """That side's hook point."""
        return self.source if side == "source" else self.target


def get_hook_point(site: Site, port: Port, writes: WriteMode = "own") -> HookPoint:
    """The hook point of a site's inputs or outputs.

    Outputs of gate and up are captured after the activation function, at the input of `down`: the neurons are
    the same. Before it, the outputs only span as many directions as the narrower residual stream has, so a
    regression would miss most of what an update can write; and a rotation of the stream would pass for a
    rotation of the neurons, which the activation function does not permit. Outputs of o and down are captured
    at the module, where they span only part of the stream, or with `stream` in the stream after the layer.
    """
    if port == "in":
        name, role = _INPUT_POINTS.get(site.role, (f"{site.role.value}_in", site.role))
        return HookPoint(site.layer, name, role, port)
    if site.role in {Role.GATE, Role.UP}:
        return HookPoint(site.layer, "down_in", Role.DOWN, "in")
    if writes == "stream" and site.role in {Role.O, Role.DOWN}:
        return HookPoint(site.layer, RESIDUAL_STREAM, Role.DOWN, "out")
    return HookPoint(site.layer, f"{site.role.value}_out", site.role, port)


def get_hook_pair(pair: SitePair, port: Port, writes: WriteMode = "own") -> HookPair:
    """The hook points of both sides of a site pair."""
    return HookPair(get_hook_point(pair.source, port, writes), get_hook_point(pair.target, port, writes))
