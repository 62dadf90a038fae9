"""Evidence for one site pair, gathered lazily and limited to what the method declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import FactorKey, PairKey
from rebase.evidence.activations import Activations
from rebase.evidence.embeddings import SharedTokenRows
from rebase.evidence.pool_offer import PoolOffer
from rebase.lora.linalg import FACTORS_VERSION, factorize
from rebase.lora.low_rank import Factors, LowRank, Side, Site
from rebase.methods.activation_maps import Moments, PairedRows
from rebase.methods.base import Evidence, Port, SiteMaps, SitePair
from rebase.models.base_pair import BaseModelRef

__all__ = ["BaseModelRef", "EvidenceProvider", "ScopedEvidence"]


@dataclass(frozen=True, slots=True)
class EvidenceProvider:
    """Creates the evidence for each site; shared by the pre-check's probes and the transfer."""

    source: BaseModelRef
    target: BaseModelRef
    cache: FactorCache
    device: torch.device
    embeddings: SharedTokenRows | None
    offer: PoolOffer | None = None
    activations: Activations | None = None
    trained_updates: Mapping[Site, LowRank] | None = None
    get_trained_maps: Callable[[SitePair], SiteMaps] | None = None

    def for_site(self, pair: SitePair, declared: frozenset[Evidence]) -> ScopedEvidence:
        """Evidence for one pair, limited to what the method declared."""
        return ScopedEvidence(self, pair, declared)

    def get_base(self, side: Side) -> BaseModelRef:
        """The base on that side."""
        return self.source if side == "source" else self.target


@dataclass(frozen=True, slots=True)
class ScopedEvidence:
    """Implements `rebase.methods.base.SiteEvidence`. Raises LookupError for undeclared evidence."""

    provider: EvidenceProvider
    pair: SitePair
    declared: frozenset[Evidence]

    def weight(self, side: Side) -> Tensor:
        """The base weight of this site, (o, i) float32, on the worker's device."""
        self._require_declared(Evidence.WEIGHTS)
        return self._load_weight(side)

    def factors(self, side: Side, rank: int) -> Factors:
        """Truncated SVD of the base weight, from the cache or computed now."""
        self._require_declared(Evidence.FACTORS)
        base, site = self.provider.get_base(side), self._get_site(side)
        o, i = base.weights.shape(site)
        key = FactorKey(
            repo_id=base.repo.repo_id,
            sha=base.repo.identity,
            tensor=f"{'+'.join(base.weights.list_tensor_names(site))}#{site.role.value}",
            rank=min(rank, o, i),
            version=FACTORS_VERSION,
        )
        factors = self.provider.cache.get_or_compute(
            key, lambda: _to_device(factorize(self._load_weight(side), rank), "cpu")
        )
        return _to_device(factors, self.provider.device)

    def embedding_rows(self, side: Side, port: Port) -> Tensor:
        """Rows paired between the two sides, (n, width) float32."""
        return self._require_embeddings().rows(side, self._get_site(side), port).to(self.provider.device)

    def cached_by_site(self, entry_name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors for this pair of bases, sites and set of shared tokens, from the cache or computed now."""
        source, target = self.provider.source.repo, self.provider.target.repo
        key = PairKey(
            source_repo=source.repo_id,
            source_sha=source.identity,
            source_site=str(self.pair.source),
            target_repo=target.repo_id,
            target_sha=target.identity,
            target_site=str(self.pair.target),
            what=entry_name,
            anchors=self._require_embeddings().digest,
        )
        tensors = self.provider.cache.get_or_compute_tensors(key, compute)
        return {name: tensor.to(self.provider.device) for name, tensor in tensors.items()}

    def moments(self, port: Port) -> Moments:
        """Second moments of both sides' inputs or outputs on the same text."""
        return self._require_activations().moments(self.pair, port)

    def held_out_rows(self, port: Port) -> PairedRows:
        """Held-out rows, which `moments` does not include."""
        return self._require_activations().held_out_rows(self.pair, port)

    def rows(self, port: Port, max_rows: int) -> PairedRows:
        """The first rows included in `moments`."""
        return self._require_activations().rows(self.pair, port, max_rows)

    def cached_by_hook(
        self, port: Port, entry_name: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors for this pair of bases, text and hook point, from the cache or computed now."""
        tensors = self._require_activations().cached_by_hook(self.pair, port, entry_name, compute)
        return {name: tensor.to(self.provider.device) for name, tensor in tensors.items()}

    def trained_update(self) -> LowRank:
        """This target site's part of the trained update."""
        self._require_declared(Evidence.TRAINED)
        if self.provider.trained_updates is None:
            raise LookupError("nothing was trained; the pipeline trains only for methods that declare it")
        update = self.provider.trained_updates[self.pair.target]
        return LowRank(update.B.to(self.provider.device), update.A.to(self.provider.device))

    def trained_maps(self) -> SiteMaps:
        """Maps trained through both bases."""
        self._require_declared(Evidence.MAPS)
        if self.provider.get_trained_maps is None:
            raise LookupError(
                "no maps were trained; the pipeline trains them only for methods that declare it"
            )
        return self.provider.get_trained_maps(self.pair)

    def anchor_updates(self) -> Sequence[LowRank]:
        """The pool's updates at this target site, read lazily."""
        self._require_declared(Evidence.ANCHORS)
        if self.provider.offer is None:
            raise LookupError("there is no pool; the method must refuse the pair first")
        return self.provider.offer.open().updates("target", self.pair.target)

    def _require_embeddings(self) -> SharedTokenRows:
        self._require_declared(Evidence.EMBEDDINGS)
        if self.provider.embeddings is None:
            raise LookupError("no shared vocabulary was found; the pre-check must refuse this pair before")
        return self.provider.embeddings

    def _require_activations(self) -> Activations:
        self._require_declared(Evidence.ACTIVATIONS)
        if self.provider.activations is None:
            raise LookupError(
                "no activations were collected; the pipeline collects them only for methods that declare it"
            )
        return self.provider.activations

    def _load_weight(self, side: Side) -> Tensor:
        return self.provider.get_base(side).weights.weight(self._get_site(side)).to(self.provider.device)

    def _get_site(self, side: Side) -> Site:
        return self.pair.source if side == "source" else self.pair.target

    def _require_declared(self, evidence: Evidence) -> None:
        if evidence not in self.declared:
            raise LookupError(f"the method asked for {evidence} without declaring it")


def _to_device(factors: Factors, device: torch.device | str) -> Factors:
    return Factors(factors.U.to(device), factors.S.to(device), factors.V.to(device), factors.energy)
