"""The places of a layer where activations are taken: several sites read the same, none write the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rebase.lora.low_rank import Role, Side, Site
from rebase.methods.base import Port, SitePair
from rebase.models.weights import ModelWeights

WriteMode = Literal["own", "stream"]
RESIDUAL_STREAM = "stream"  # the residual stream behind a layer
_INPUT_POINTS = {
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
    """`name`: such as `mlp_in`; `role` and `port`: a site at which it can be seen."""

    layer: int
    name: str
    role: Role
    port: Port

    @property
    def site(self) -> Site:
        """A site that reads or writes here."""
        return Site(self.layer, self.role)

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}"

    def width(self, base: ModelWeights) -> int:
        """How many numbers a token has here."""
        o, i = base.shape(self.site)
        return i if self.port == "in" else o


@dataclass(frozen=True, slots=True, order=True)
class HookPair:
    """A place of the source and the one of the target that is read or written in its stead."""

    source: HookPoint
    target: HookPoint

    def on_side(self, side: Side) -> HookPoint:
        """That side's place."""
        return self.source if side == "source" else self.target


def get_hook_point(site: Site, port: Port, writes: WriteMode = "own") -> HookPoint:
    """Where this site reads or writes.

    What gate and up write is looked at behind the activation, where `down` reads it: the same neurons. In
    front of it there are more of them than directions that a weight can reach (the stream is narrower), so a
    regression would be blind to most of what an update may write there; and a turn of the stream would pass
    for a turn among neurons, which the activation does not allow. What o and down write is their own output,
    which spans only part of the stream, or with `stream` the whole of it behind the layer.
    """
    if port == "in":
        name, role = _INPUT_POINTS[site.role]
        return HookPoint(site.layer, name, role, port)
    if site.role in {Role.GATE, Role.UP}:
        return HookPoint(site.layer, "down_in", Role.DOWN, "in")
    if writes == "stream" and site.role in {Role.O, Role.DOWN}:
        return HookPoint(site.layer, RESIDUAL_STREAM, Role.DOWN, "out")
    return HookPoint(site.layer, f"{site.role.value}_out", site.role, port)


def get_hook_pair(pair: SitePair, port: Port, writes: WriteMode = "own") -> HookPair:
    """The places of both sides of a site pair."""
    return HookPair(get_hook_point(pair.source, port, writes), get_hook_point(pair.target, port, writes))
