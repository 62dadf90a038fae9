"""Paired activations as evidence: what is cached per pair of bases, and the layer maps derived from them."""

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
from rebase.evidence.collector import ActivationCollector, CollectedActivations
from rebase.evidence.hook_points import WriteMode, get_hook_pair
from rebase.evidence.layer_similarity import (
    MAX_POSITIONS,
    SIMILARITY_VERSION,
    SimilarityResult,
    measure_similarity,
)
from rebase.evidence.paired_text import PairedText
from rebase.hub.base import PinnedRepo
from rebase.methods.activation_maps import Moments, PairedRows
from rebase.methods.base import PORTS, Port, SitePair
from rebase.methods.site_pairing import LayerMaps
from rebase.models.base_pair import BasePair
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase

# Part of every key: raise it whenever the same text may give different sums.
ROWS_VERSION = 1


@dataclass
class Activations:
    """Activations of both bases on one text. Nothing runs until something is requested that is not cached."""

    source: PinnedRepo
    target: PinnedRepo
    corpus: Corpus
    text: PairedText
    collector: ActivationCollector
    cache: FactorCache
    progress: ProgressReporter
    writes: WriteMode = "own"

    @property
    def models(self) -> BasePair:
        """The models."""
        return self.collector.models

    @cached_property
    def similarity(self) -> SimilarityResult:
        """Layer-by-layer similarity, computed once per pair of bases and text."""

        def compute() -> dict[str, Tensor]:
            result = measure_similarity(self.models, self.text, self.report_progress)
            biased = torch.tensor(result.biased or (0.0,), dtype=torch.float32)
            count = torch.tensor([float(result.num_positions)])
            return {"matrix": result.matrix.float(), "biased": biased, "positions": count}

        tensors = self.cache.get_or_compute_tensors(
            self._build_key("layers", "layers", f"similarity v{SIMILARITY_VERSION} {MAX_POSITIONS}"), compute
        )
        return SimilarityResult(
            tensors["matrix"].double(), tuple(tensors["biased"].tolist()), int(tensors["positions"].item())
        )

    @property
    def layer_maps(self) -> LayerMaps:
        """The layer maps that maximise similarity, in both directions."""
        matrix = self.similarity.matrix
        return LayerMaps(find_monotone_map(matrix), find_monotone_map(matrix.T))

    def compute_measurements(self, similar: float) -> dict[str, float]:
        """Measurements on the whole text for the pre-check. `similar`: CKA above which layers are similar."""
        similarity = self.similarity
        best_matches = [float(similarity.matrix[s, t]) for t, s in enumerate(similarity.layers)]
        return {
            "cka_coverage": similarity.compute_coverage(similar),
            "cka_mean": sum(best_matches) / len(best_matches),
            "cka_biased_mean": sum(similarity.biased) / len(similarity.biased),
            "text_positions": float(self.text.num_positions),
            "token_coverage_source": self.text.source_coverage,
            "token_coverage_target": self.text.target_coverage,
        }

    def plan(self, pairs: Sequence[SitePair]) -> None:
        """Announce the order in which sites will be requested."""
        self.collector.plan([get_hook_pair(pair, port, self.writes) for pair in pairs for port in PORTS])

    def moments(self, pair: SitePair, port: Port) -> Moments:
        """Second moments of both sides' inputs or outputs."""
        return self._collect(pair, port).moments

    def held_out_rows(self, pair: SitePair, port: Port) -> PairedRows:
        """Held-out rows, which `moments` does not include."""
        return self._collect(pair, port).held_out

    def rows(self, pair: SitePair, port: Port, max_rows: int) -> PairedRows:
        """The first rows included in `moments`."""
        paired_rows = self._collect(pair, port).rows
        device = self.models.device
        return PairedRows(paired_rows.source[:max_rows].to(device), paired_rows.target[:max_rows].to(device))

    def cached_by_hook(
        self, pair: SitePair, port: Port, entry_name: str, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors from the cache, or computed now."""
        hook_pair = get_hook_pair(pair, port, self.writes)
        key = self._build_key(str(hook_pair.source), str(hook_pair.target), entry_name)
        return self.cache.get_or_compute_tensors(key, compute)

    def report_progress(self, done: int, total: int) -> None:
        """Report the progress of a pass over the text."""
        self.progress.update(Phase.COLLECTING, done, total, "passages")

    def _collect(self, pair: SitePair, port: Port) -> CollectedActivations:
        hook_pair = get_hook_pair(pair, port, self.writes)
        return self.collector.get(hook_pair)

    def _build_key(self, source: str, target: str, entry_name: str) -> PairKey:
        return PairKey(
            source_repo=self.source.repo_id,
            source_sha=self.source.identity,
            source_site=source,
            target_repo=self.target.repo_id,
            target_sha=self.target.identity,
            target_site=target,
            what=f"{entry_name} rows v{ROWS_VERSION}",
            anchors=self.text.digest,
        )
