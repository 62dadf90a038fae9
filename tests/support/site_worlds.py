"""Constructed sites: weights, updates and paired rows in memory, so that a method's answer is known.

`Evidence` serves one site pair to a method without models or files. Spectra: `flat` is a Gaussian matrix,
`realistic` has a few large directions and a slowly falling bulk, as trained weights have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from transfer.interface import Factors, LowRank, Pair, Port, Role, Side, Site, SitePair
from transfer.linalg import factorize


@dataclass(frozen=True, slots=True)
class Evidence:
    """SiteEvidence from given tensors. `rows`: (side, port) → paired rows."""

    weights: dict[Side, Tensor]
    rows: dict[tuple[Side, Port], Tensor]

    def weight(self, side: Side) -> Tensor:
        return self.weights[side]

    def factors(self, side: Side, rank: int) -> Factors:
        return factorize(self.weights[side], rank)

    def paired(self, side: Side, port: Port) -> Tensor:
        return self.rows[side, port]

    def kept(self, what: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return compute()


def gaussian(*shape: int, seed: int) -> Tensor:
    """Standard normal float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> Tensor:
    """A random orthogonal float64 matrix."""
    Q: Tensor = torch.linalg.qr(gaussian(size, size, seed=seed).double()).Q
    return Q


def weight(o: int, i: int, seed: int, spectrum: str = "realistic") -> Tensor:
    """A float32 weight of that spectrum; full rank."""
    if spectrum == "flat":
        return gaussian(o, i, seed=seed)
    p = min(o, i)
    U, V = orthogonal(o, seed)[:, :p], orthogonal(i, seed + 1)[:, :p]
    j = torch.arange(1, p + 1, dtype=torch.float64)
    return (U * (8.0 / j + j**-0.3) @ V.T).float()


def update(o: int, i: int, r: int, seed: int) -> LowRank:
    """A random update of rank r."""
    return LowRank(gaussian(o, r, seed=seed) / o**0.5, gaussian(r, i, seed=seed + 1) / i**0.5)


def site_pair(
    source: tuple[int, int], target: tuple[int, int], role: Role = Role.Q, scale: float = 1.0
) -> SitePair:
    """Layer 0 on both sides."""
    return SitePair(Site(0, role), Site(0, role), source, target, scale)


def pair_of(*sites: SitePair) -> Pair:
    """What `prepare` sees."""
    return Pair({}, {}, sites)


def dense(delta: LowRank) -> Tensor:
    """B A in float64. Tests may build it; the code under test may not."""
    return delta.B.double() @ delta.A.double()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def evidence(
    source: Tensor,
    target: Tensor,
    anchors: int,
    seed: int,
    rows: dict[tuple[Side, Port], Tensor] | None = None,
) -> Evidence:
    """Evidence with the given rows, or with rows that are random and unrelated on the two sides."""
    made: dict[tuple[Side, Port], Tensor] = {}
    for number, (side, W) in enumerate((("source", source), ("target", target))):
        made[side, "in"] = gaussian(anchors, W.shape[1], seed=seed + 10 * number)  # type: ignore[index]
        made[side, "out"] = gaussian(anchors, W.shape[0], seed=seed + 10 * number + 1)  # type: ignore[index]
    return Evidence({"source": source, "target": target}, made | (rows or {}))
