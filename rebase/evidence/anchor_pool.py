"""An anchor pool opened for one conversion: all headers are read at once, tensors one site at a time.

Inner products between anchors depend only on the pool, so they are cached by its pinned commits; only those
with the adapter being transferred are computed each time. Hub access is always checked first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import PoolKey
from rebase.errors import IncompatiblePair, RebaseError, RequestInvalid, TransferError
from rebase.hub.base import Hub, PinnedRepo, pin
from rebase.lora.config import AdapterConfig
from rebase.lora.linalg import FACTORS_VERSION
from rebase.lora.low_rank import LowRank, Side, Site
from rebase.lora.reader import read_adapter
from rebase.lora.source_adapter import SourceAdapter
from rebase.methods.base import Kernels, SitePair, Space
from rebase.methods.pool_kernel import KERNEL_VERSION, gram, site_kernel
from rebase.methods.site_pairing import Pairing
from rebase.models.adapter_reader import open_adapter
from rebase.models.base_pair import BaseModelRef
from rebase.report.progress import ProgressReporter
from rebase.schemas.anchor_pools import AnchorSpec, Pool, PoolRequest
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import Phase

SIDES: tuple[Side, Side] = ("source", "target")


@dataclass(frozen=True, slots=True)
class Anchor:
    """One task's two adapters, opened."""

    repos: dict[Side, PinnedRepo]
    adapters: dict[Side, SourceAdapter]
    domain: str
    declared_bases: dict[Side, str | None]


@dataclass(slots=True)
class LoadedAnchorPool:
    """Implements `rebase.methods.base.AnchorPool`. `pairs`: sites at which every anchor has an update on both
    sides and the adapter has one. `adapter`: the one being transferred; None during pool registration."""

    id: str | None
    anchors: tuple[Anchor, ...]
    pairs: tuple[SitePair, ...]
    bases: dict[Side, BaseModelRef]
    adapter: SourceAdapter | None
    cache: FactorCache
    device: torch.device
    progress: ProgressReporter
    phase: Phase
    pointer: Callable[[int, Side], str]
    lenient: bool
    _kernels: dict[tuple[SitePair, Space], Kernels] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str, ...]:
        """A label per anchor."""
        return tuple(anchor.domain for anchor in self.anchors)

    def kernels(self, pair: SitePair, space: Space) -> Kernels:
        """Inner products at one site pair, computed once per job."""
        kernels = self._kernels.get((pair, space))
        if kernels is None:
            self.progress.update(self.phase, len(self._kernels), len(self.pairs), "sites")
            kernels = self._kernels[pair, space] = self._compute_kernels(pair, space)
        return kernels

    def updates(self, side: Side, site: Site) -> AnchorUpdates:
        """Every anchor's update at one site on the worker's device, read lazily."""
        return AnchorUpdates(self, side, site)

    def pin_request(self, request: PoolRequest, source: PinnedRepo, target: PinnedRepo) -> PoolRequest:
        """The request with every revision replaced by its commit."""
        anchors = [
            {
                "source": _pin_ref(spec.source, anchor.repos["source"]),
                "target": _pin_ref(spec.target, anchor.repos["target"]),
                "domain": spec.domain,
            }
            for spec, anchor in zip(request.anchors, self.anchors, strict=True)
        ]
        return PoolRequest.model_validate(
            {
                "name": request.name,
                "source": _pin_ref(request.source, source),
                "target": _pin_ref(request.target, target),
                "anchors": anchors,
            }
        )

    def _compute_kernels(self, pair: SitePair, space: Space) -> Kernels:
        source_updates: list[LowRank] = []

        def load_source_updates() -> list[LowRank]:
            if not source_updates:
                source_updates.extend(self.updates("source", pair.source))
            return source_updates

        K = self._compute_gram("source", pair.source, space, load_source_updates)
        G = self._compute_gram(
            "target", pair.target, space, lambda: list(self.updates("target", pair.target))
        )
        if self.adapter is None:
            return Kernels(K, torch.zeros(len(self.anchors), dtype=torch.float64), G, 0.0)
        adapter_update = _to_device(self.adapter.delta(pair.source), self.device)
        k = gram(load_source_updates(), [adapter_update], space)[:, 0].cpu()
        return Kernels(K, k, G, float(gram([adapter_update], [adapter_update], space)))

    def _compute_gram(
        self, side: Side, site: Site, space: Space, load_updates: Callable[[], Sequence[LowRank]]
    ) -> Tensor:
        """K or G at one site, cached, (N, N) float64."""
        key = PoolKey(
            anchors=_hash_repos([self.bases[side].repo, *(anchor.repos[side] for anchor in self.anchors)]),
            count=len(self.anchors),
            site=str(site),
            space=space,
            version=KERNEL_VERSION,
            factors_version=FACTORS_VERSION,
        )
        tensors = self.cache.get_or_compute_tensors(
            key, lambda: _split_float64(site_kernel(load_updates(), space))
        )
        return torch.ldexp(tensors["high"].double() + tensors["low"].double(), tensors["exponent"].double())


@dataclass(frozen=True, slots=True)
class AnchorUpdates(Sequence[LowRank]):
    """The anchors' updates at one site and side. Anchors that a prediction does not use are never read."""

    pool: LoadedAnchorPool
    side: Side
    site: Site

    def __len__(self) -> int:
        return len(self.pool.anchors)

    @overload
    def __getitem__(self, at: int) -> LowRank: ...
    @overload
    def __getitem__(self, at: slice) -> list[LowRank]: ...
    def __getitem__(self, at: int | slice) -> LowRank | list[LowRank]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        anchor = self.pool.anchors[at]
        try:
            return _to_device(anchor.adapters[self.side].delta(self.site), self.pool.device)
        except TransferError as exc:
            annotate_anchor_error(exc, str(anchor.repos[self.side]), self.pool.pointer(at, self.side))
            if self.pool.lenient:
                raise make_pool_unusable_error(exc) from exc
            raise


def load_anchor_pool(
    pool: Pool,
    hub: Hub,
    bases: dict[Side, BaseModelRef],
    pairing: Pairing,
    adapter: SourceAdapter | None,
    cache: FactorCache,
    device: torch.device,
    progress: ProgressReporter,
    *,
    phase: Phase,
    pointer: Callable[[int, Side], str],
    lenient: bool = False,
) -> LoadedAnchorPool:
    """Check access to every anchor, pin it, and check its headers against its base.

    `phase` is reported as progress; `pointer` locates an anchor in the request, for errors; `lenient`: an
    anchor that later turns out to be broken raises IncompatiblePair, so that `auto` can do without the pool.
    Raises the errors of hub and reader, RequestInvalid if an adapter is listed twice, and IncompatiblePair if
    no site is common to all anchors and the adapter.
    """
    anchors = []
    total = len(pool.spec.anchors)
    for number, spec in enumerate(pool.spec.anchors):
        progress.update(phase, number, total, "anchors")
        anchors.append(_load_anchor(spec, hub, bases, partial(pointer, number)))
    _reject_duplicates(anchors, pointer)
    pairs = tuple(
        pair
        for pair in pairing.pairs
        if all(
            pair.source in anchor.adapters["source"].sites and pair.target in anchor.adapters["target"].sites
            for anchor in anchors
        )
    )
    if not pairs:
        raise IncompatiblePair(
            "No module is adapted by the adapter and by every anchor of the pool.",
            hint="Remove the anchors that adapt different modules from the rest.",
            pointer=pointer(_find_narrowest_anchor(anchors), "source"),
        )
    progress.update(phase, total, total, "anchors")
    return LoadedAnchorPool(
        pool.id, tuple(anchors), pairs, bases, adapter, cache, device, progress, phase, pointer, lenient
    )


def _load_anchor(
    spec: AnchorSpec, hub: Hub, bases: dict[Side, BaseModelRef], pointer: Callable[[Side], str]
) -> Anchor:
    repos: dict[Side, PinnedRepo] = {}
    adapters: dict[Side, SourceAdapter] = {}
    declared: dict[Side, str | None] = {}
    for side in SIDES:
        ref = spec.source if side == "source" else spec.target
        try:
            repos[side] = pin(hub, ref, pointer(side))
            config, reader = open_adapter(hub, repos[side])
            adapters[side] = read_adapter(AdapterConfig.parse(config), reader, bases[side].weights)
        except (RebaseError, TransferError) as exc:
            if exc.pointer == "/source":
                exc.hint = f"An anchor's {side} adapter must be an adapter of the pool's {side} base."
            annotate_anchor_error(exc, str(ref), pointer(side))
            raise
        base: Any = config.get("base_model_name_or_path")
        declared[side] = base[:200] if isinstance(base, str) and base else None
    return Anchor(repos, adapters, spec.domain, declared)


def _reject_duplicates(anchors: Sequence[Anchor], pointer: Callable[[int, Side], str]) -> None:
    """Raises RequestInvalid if an adapter is listed twice, for example by branch and by commit."""
    for side in SIDES:
        numbers: dict[str, int] = {}
        for number, anchor in enumerate(anchors):
            name = str(anchor.repos[side])
            if name in numbers:
                raise RequestInvalid(
                    f"Anchors {numbers[name]} and {number} have the same {side} adapter, {name}.",
                    hint="List every adapter once.",
                    pointer=pointer(number, side),
                )
            numbers[name] = number


def make_pool_unusable_error(exc: RebaseError | TransferError) -> IncompatiblePair:
    """Wrap an error so that `auto` does without the pool."""
    return IncompatiblePair(f"The anchor pool cannot be used. {exc.message}")


def annotate_anchor_error(exc: RebaseError | TransferError, name: str, pointer: str) -> None:
    """Make an error say that it concerns this anchor rather than the request's adapter or base."""
    exc.message = f"Anchor {name}: {exc.message}"
    exc.args = (exc.message,)
    exc.pointer = pointer


def _find_narrowest_anchor(anchors: Sequence[Anchor]) -> int:
    """The anchor that adapts the fewest modules: the most likely cause of an empty intersection."""
    return min(range(len(anchors)), key=lambda n: min(len(anchors[n].adapters[side].sites) for side in SIDES))


def _pin_ref(ref: RepoRef, repo: PinnedRepo) -> RepoRef:
    return ref.model_copy(update={"revision": repo.sha})


def _hash_repos(repos: Iterable[PinnedRepo]) -> str:
    """Hash of the base and the anchors, in order, at their commits. A DoRA update depends on the base."""
    names = [[repo.repo_id, repo.identity] for repo in repos]
    return hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).hexdigest()


def _split_float64(kernel: Tensor) -> dict[str, Tensor]:
    """Split float64 into a sum of two float32 tensors, as the cache stores float32 (48 of 53 bits), times a
    power of two that keeps the largest entry near 1: squares of extreme updates exceed float32's range."""
    _, exponent = torch.frexp(kernel.abs().max())
    scaled = torch.ldexp(kernel, -exponent)
    high = scaled.float()
    return {"high": high, "low": (scaled - high.double()).float(), "exponent": exponent.float().reshape(1)}


def _to_device(delta: LowRank, device: torch.device) -> LowRank:
    return LowRank(delta.B.to(device), delta.A.to(device))
