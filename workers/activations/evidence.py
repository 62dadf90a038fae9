"""Paired activations as evidence: what is kept of them per pair of bases, and the layers that they pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import PairKey
from rebase.corpus.corpus import Corpus
from rebase.evidence.cka import find_monotone_map
from rebase.hub.base import PinnedRepo
from rebase.methods.activation_maps import Moments, PairedRows
from rebase.methods.base import PORTS, Port, SitePair
from rebase.methods.site_pairing import LayerMaps
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from workers.activations.collector import Collected, Collector
from workers.activations.ports import Writes, places_of
from workers.activations.similarity import POSITIONS, SIMILARITY_VERSION, Similarity, measure
from workers.activations.text import PairedText
from workers.bases import Bases

# Part of every key: raise it whenever the same text may give other sums.
ROWS_VERSION = 1


@dataclass
class Activations:
    """Both bases over one text. Nothing runs before something is asked for that the cache does not have."""

    source: PinnedRepo
    target: PinnedRepo
    corpus: Corpus
    text: PairedText
    collector: Collector
    cache: FactorCache
    watch: ProgressReporter
    writes: Writes = "own"

    @property
    def bases(self) -> Bases:
        """The models."""
        return self.collector.bases

    @cached_property
    def similarity(self) -> Similarity:
        """Layer by layer; computed once per pair of bases and text."""

        def compute() -> dict[str, Tensor]:
            found = measure(self.bases, self.text, self.step)
            biased = torch.tensor(found.biased or (0.0,), dtype=torch.float32)
            count = torch.tensor([float(found.positions)])
            return {"matrix": found.matrix.float(), "biased": biased, "positions": count}

        kept = self.cache.get_or_compute_tensors(
            self._key("layers", "layers", f"similarity v{SIMILARITY_VERSION} {POSITIONS}"), compute
        )
        return Similarity(
            kept["matrix"].double(), tuple(kept["biased"].tolist()), int(kept["positions"].item())
        )

    @property
    def layers(self) -> LayerMaps:
        """The layer maps of greatest similarity, both ways."""
        matrix = self.similarity.matrix
        return LayerMaps(find_monotone_map(matrix), find_monotone_map(matrix.T))

    def measured(self, similar: float) -> dict[str, float]:
        """What the pre-check is told of the text as a whole; CKA above `similar` counts as alike."""
        found = self.similarity
        along = [float(found.matrix[s, t]) for t, s in enumerate(found.layers)]
        return {
            "cka_coverage": found.covered(similar),
            "cka_mean": sum(along) / len(along),
            "cka_biased_mean": sum(found.biased) / len(found.biased),
            "text_positions": float(self.text.positions),
            "token_coverage_source": self.text.source_coverage,
            "token_coverage_target": self.text.target_coverage,
        }

    def plan(self, pairs: Sequence[SitePair]) -> None:
        """In which order sites will be asked for."""
        self.collector.plan([places_of(pair, port, self.writes) for pair in pairs for port in PORTS])

    def moments(self, pair: SitePair, port: Port) -> Moments:
        """Sums over what both sides read or write."""
        return self._collected(pair, port).moments

    def held_out(self, pair: SitePair, port: Port) -> PairedRows:
        """Rows that `moments` has not seen."""
        return self._collected(pair, port).held_out

    def rows(self, pair: SitePair, port: Port, most: int) -> PairedRows:
        """The first rows of those that it has."""
        found = self._collected(pair, port).rows
        device = self.bases.device
        return PairedRows(found.source[:most].to(device), found.target[:most].to(device))

    def kept_at(
        self, pair: SitePair, port: Port, what: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """From the cache or computed now."""
        places = places_of(pair, port, self.writes)
        key = self._key(str(places.source), str(places.target), what)
        return self.cache.get_or_compute_tensors(key, compute)

    def step(self, done: int, total: int) -> None:
        """Progress of a pass over the text."""
        self.watch.update(Phase.COLLECTING, done, total, "passages")

    def _collected(self, pair: SitePair, port: Port) -> Collected:
        places = places_of(pair, port, self.writes)
        return self.collector.get(places)

    def _key(self, source: str, target: str, what: str) -> PairKey:
        return PairKey(
            source_repo=self.source.repo_id,
            source_sha=self.source.sha,
            source_site=source,
            target_repo=self.target.repo_id,
            target_sha=self.target.sha,
            target_site=target,
            what=f"{what} rows v{ROWS_VERSION}",
            anchors=self.text.digest,
        )
