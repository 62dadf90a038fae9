"""Core value types: low-rank updates, the sites they apply to, and truncated SVDs of base weights.

The orientation is PEFT's throughout: a linear layer is y = W x with W ∈ R^{o×i}; an update is ΔW = B A with
A ∈ R^{r×i}, B ∈ R^{o×r}, and the LoRA scale folded into B. A *site* is one linear role in one layer, after
splitting fused modules (`q_proj`, never `qkv_proj`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass


Side = Literal["source", "target"]


class Role(StrEnum):
    """The seven linear roles of a decoder layer; `models/families.py` maps them to modules per family."""

    Q = "q_proj"
    K = "k_proj"
    V = "v_proj"
    O = "o_proj"  # noqa: E741  (the field's own letter)
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


class ModuleRole(str):
    """A linear module of a layer outside the seven roles (an expert, a state-space projection, …), named by
    its path inside the layer. Only methods that keep coordinates transfer it, to the module of the same name
    and shape."""

    __slots__ = ()

    @property
    def value(self) -> str:
        """The path, as `Role.value` is the role's name."""
        return str(self)


RoleName = Role | ModuleRole


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One linear role in one layer of one model."""

    layer: int
    role: RoleName

    def __str__(self) -> str:
        return f"{self.layer}.{self.role.value}"


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = B A, scale included. B: (o, r), A: (r, i); float32 unless stated otherwise."""

    B: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i) of the dense update."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Number of columns of B; the numerical rank may be lower."""
        return self.B.shape[1]

    @classmethod
    def cat(cls, parts: Sequence[LowRank]) -> LowRank:
        """The exact sum of updates of one shape, concatenated along the rank."""
        return cls(torch.cat([part.B for part in parts], 1), torch.cat([part.A for part in parts], 0))

    def to(self, device: torch.device | str) -> LowRank:
        """The same update on a device."""
        return LowRank(self.B.to(device), self.A.to(device))

    def cpu(self) -> LowRank:
        """The same update on the CPU."""
        return LowRank(self.B.cpu(), self.A.cpu())

    def scaled(self, factor: float) -> LowRank:
        """The same update times `factor`."""
        return LowRank(self.B * factor, self.A)


@dataclass(frozen=True, slots=True)
class Factors:
    """Rank-k truncated SVD of one base weight: W ≈ U diag(S) Vᵀ. U: (o, k), S: (k,), V: (i, k), float32.

    `energy` is the share of ‖W‖²_F captured by the k directions, in [0, 1].
    """

    U: Tensor
    S: Tensor
    V: Tensor
    energy: float
