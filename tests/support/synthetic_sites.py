"""Constructed sites: weights, updates and paired rows in memory, so that a method's answer is known.

`Evidence` serves one site pair to a method without models or files. Spectra: `flat` is a Gaussian matrix,
`realistic` has a few large directions and a slowly falling bulk, as trained weights have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.linalg import factorize
from rebase.lora.low_rank import Factors, LowRank, Role, Side, Site
from rebase.methods.activation_maps import Moments, PairedRows, fit_input_map, fit_output_map
from rebase.methods.base import BasePairInfo, Kernels, Port, SiteMaps, SitePair, Space
from rebase.methods.pool_kernel import gram, site_kernel


@dataclass(frozen=True, slots=True)
class Evidence:
    """SiteEvidence from given tensors. `pairs`: (side, port) → paired rows; `pool`: an anchor's updates."""

    weights: dict[Side, Tensor]
    pairs: dict[tuple[Side, Port], Tensor]
    pool: tuple[tuple[LowRank, LowRank], ...] = ()

    def weight(self, side: Side) -> Tensor:
        return self.weights[side]

    def factors(self, side: Side, rank: int) -> Factors:
        return factorize(self.weights[side], rank)

    def embedding_rows(self, side: Side, port: Port) -> Tensor:
        return self.pairs[side, port]

    def cached_by_site(self, entry_name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return compute()

    def cached_by_hook(
        self, port: Port, entry_name: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        return compute()

    def moments(self, port: Port) -> Moments:
        rows = self._split(port)[0]
        return rows.compute_moments()

    def held_out_rows(self, port: Port) -> PairedRows:
        return self._split(port)[1]

    def rows(self, port: Port, max_rows: int) -> PairedRows:
        rows = self._split(port)[0]
        return PairedRows(rows.source[:max_rows], rows.target[:max_rows])

    def _split(self, port: Port) -> tuple[PairedRows, PairedRows]:
        X, Y = self.embedding_rows("source", port), self.embedding_rows("target", port)
        held_out = torch.arange(X.shape[0]) % 8 == 7
        return PairedRows(X[~held_out], Y[~held_out]), PairedRows(X[held_out], Y[held_out])

    def trained_maps(self) -> SiteMaps:
        """As training them ends where a linear map explains everything; trained in every direction."""
        M_in, M_out = (
            fit_input_map(self.moments("in"), 1e-9).float(),
            fit_output_map(self.moments("out"), 1e-9).float(),
        )
        return SiteMaps(M_in, M_out, torch.eye(M_in.shape[0]), torch.eye(M_out.shape[1]))

    def anchor_updates(self) -> Sequence[LowRank]:
        return [target for _, target in self.pool]


@dataclass(frozen=True, slots=True)
class Pool:
    """Anchors in memory. `updates`: per site pair, every anchor's updates on both sides; `moved`: per site
    pair, the update of the adapter that is moved."""

    updates: Mapping[SitePair, Sequence[tuple[LowRank, LowRank]]]
    moved: Mapping[SitePair, LowRank]
    domains: Sequence[str]

    @property
    def pairs(self) -> tuple[SitePair, ...]:
        return tuple(self.updates)

    def kernels(self, pair: SitePair, space: Space) -> Kernels:
        sources, targets = zip(*self.updates[pair], strict=True)
        moved = self.moved[pair]
        k = gram(sources, [moved], space)[:, 0]
        own = float(gram([moved], [moved], space))
        return Kernels(site_kernel(sources, space), k, site_kernel(targets, space), own)


def anchor_updates(
    source: tuple[int, int], target: tuple[int, int], seed: int, count: int = 5, rank: int = 3
) -> tuple[tuple[LowRank, LowRank], ...]:
    """Random updates of `count` anchors at one site."""
    return tuple(
        (update(*source, rank, seed + 100 * n), update(*target, rank, seed + 100 * n + 50))
        for n in range(count)
    )


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


def pair_of(
    *sites: SitePair, seen: Evidence | None = None, delta: LowRank | None = None, domains: str = "abcab"
) -> BasePairInfo:
    """What `prepare` sees, with a pool: that of `seen` for one site, or random ones."""
    updates = {
        site: seen.pool if seen else anchor_updates(site.source_shape, site.target_shape, seed=9 + n)
        for n, site in enumerate(sites)
    }
    moved = {site: delta or update(*site.source_shape, 2, seed=77) for site in sites}
    return BasePairInfo({}, {}, sites, Pool(updates, moved, domains) if sites else None)


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
    pool: tuple[tuple[LowRank, LowRank], ...] | None = None,
) -> Evidence:
    """Evidence with the given rows and anchors, or with random ones that are unrelated on the two sides."""
    made: dict[tuple[Side, Port], Tensor] = {}
    for number, (side, W) in enumerate((("source", source), ("target", target))):
        made[side, "in"] = gaussian(anchors, W.shape[1], seed=seed + 10 * number)  # type: ignore[index]
        made[side, "out"] = gaussian(anchors, W.shape[0], seed=seed + 10 * number + 1)  # type: ignore[index]
    (o_s, i_s), (o_t, i_t) = source.shape, target.shape
    pool = pool or anchor_updates((o_s, i_s), (o_t, i_t), seed + 30)
    return Evidence({"source": source, "target": target}, made | (rows or {}), pool)
