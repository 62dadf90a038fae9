"""`cast` in a job: loads cached maps for this pair of base models, or trains and caches them.

Cached maps contain directions of the adapter they were trained with, so a job may use them only if it can
read that adapter.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebase.cache.keys import PairKey
from rebase.errors import HubUnauthorized, RepoGated, RepoNotFound, TrainingFailed
from rebase.evidence.activations import Activations
from rebase.evidence.inputs import LoadedInputs
from rebase.evidence.site_evidence import EvidenceProvider
from rebase.lora.low_rank import LowRank
from rebase.methods.activation_maps import get_site_map
from rebase.methods.base import Evidence, Port, SiteMaps, SitePair
from rebase.methods.cast.params import CastParams
from rebase.models.base_pair import BasePair
from rebase.models.causal_lm import CausalLM
from rebase.report.progress import ProgressReporter
from rebase.report.schema import RepoRevision
from rebase.runtime import Runtime
from rebase.training.cast import MEASUREMENT_NAMES, CastMaps, train_cast_maps
from rebase.training.cast_maps import CAST_MAPS_VERSION, TrainableMaps, TrainedMaps, init_random_maps
from rebase.training.checkpoint import compute_identity
from rebase.training.logit_shift import require_shared_tokens
from rebase.training.teacher_dataset import TeacherDataset

_IGNORED_SETTINGS = {"reuse", "refine", "dare"}  # settings that do not affect training
_LAYOUT_VERSION = (
    3  # of the cache entries; 1 did not name the adapter in map entries, 2 had no list of site pairs
)


@dataclass(frozen=True, slots=True)
class CastMapsResult:
    """Maps for a job. `trained_on`: the adapter they were trained with."""

    get_site_maps: Callable[[SitePair], SiteMaps]
    measurements: dict[str, float]
    trained_on: RepoRevision


def get_or_train_maps(
    inputs: LoadedInputs,
    models: BasePair,
    evidence: EvidenceProvider,
    pairs: tuple[SitePair, ...],
    params: CastParams,
    runtime: Runtime,
    progress: ProgressReporter,
) -> CastMapsResult:
    """Cached maps of this adapter, or of another one if `params.reuse` is set; otherwise trained now and
    cached. Raises TrainingFailed."""
    job = _CastJob(inputs, models, evidence, pairs, params, runtime, progress)
    cached = job.load_cached()
    if cached is not None and cached[1] != job.adapter and not params.reuse:
        cached = None
    maps, trained_on = cached or job.train()
    reused = {"cast_reused": 1.0} if trained_on != job.adapter else {}
    return CastMapsResult(
        lambda pair: job.build_site_maps(pair, maps), {**maps.measurements, **reused}, trained_on
    )


@dataclass(frozen=True, slots=True)
class _CacheIndex:
    """Index of the cached maps: their adapter, their site pairs, and the measurements from training."""

    trained_on: RepoRevision
    pair_names: frozenset[str]
    measurements: dict[str, float]


@dataclass(frozen=True, slots=True)
class _CastJob:
    """One call of `get_or_train_maps`."""

    inputs: LoadedInputs
    models: BasePair
    evidence: EvidenceProvider
    pairs: tuple[SitePair, ...]
    params: CastParams
    runtime: Runtime
    progress: ProgressReporter

    @property
    def adapter(self) -> RepoRevision:
        """The adapter being transferred."""
        adapter = self.inputs.pinned.adapter
        return RepoRevision(repo_id=adapter.repo_id, sha=adapter.sha, subfolder=adapter.subfolder)

    def load_cached(self) -> tuple[CastMaps, RepoRevision] | None:
        """Maps cached by an earlier job for the same bases, text and settings, if this job may use them."""
        index = self._read_index()
        if index is None:
            return None
        if index.trained_on.repo_id != self.adapter.repo_id and not self._can_read(index.trained_on.repo_id):
            return None
        maps: dict[SitePair, TrainedMaps] = {}
        for pair in self._select_indexed(index):
            tensors = self.runtime.cache.get(
                self._build_key(str(pair.source), str(pair.target), index.trained_on)
            )
            if tensors is None or not _has_expected_shapes(tensors, pair):
                return None  # some entries were evicted, so the set is incomplete
            maps[pair] = TrainedMaps(**tensors)
        return (CastMaps(maps, index.measurements), index.trained_on) if maps else None

    def train(self) -> tuple[CastMaps, RepoRevision]:
        """Train with this adapter; cached unless a complete set from another adapter already is."""
        if not self.models.fits("target"):
            raise TrainingFailed(
                "The target does not fit into this worker's memory, so maps cannot be trained through it "
                "here.",
                hint=(
                    "Use a worker with more device memory, or raise REBASE_MODEL_BYTES if memory is "
                    "available."
                ),
                pointer="/method",
            )
        trainable_maps = self._build_trainable_maps()
        folder = self.runtime.scratch_dir / "training" / f"cast-{self._compute_identity()[:32]}"
        dataset = self._make_dataset(folder)
        source = self.models.get_model("source")
        deltas = {site: self.inputs.adapter.delta(site) for site in self.inputs.adapter.sites}
        coverage = dataset.cache_source(
            source, {site: _to_device(delta, source) for site, delta in deltas.items()}, self.progress
        )
        del source
        target = self.models.get_model("target")
        dataset.cache_target(target, self.progress)
        maps = train_cast_maps(
            target,
            dataset,
            trainable_maps,
            self.params,
            coverage=coverage,
            progress=self.progress,
            checkpoint_path=folder / "descent.safetensors",
            checkpoint_s=self.runtime.checkpoint_s,
        )
        if self._can_store():
            self._store(maps)
        shutil.rmtree(folder, ignore_errors=True)
        return maps, self.adapter

    def build_site_maps(self, pair: SitePair, maps: CastMaps) -> SiteMaps:
        """Full maps of a pair; the initial ones if nothing was trained there."""
        M_in, M_out = self._build_initial_maps(pair)
        if pair in maps.maps:
            return maps.maps[pair].to_site_maps(M_in, M_out)
        (o_s, i_s), new_zeros = pair.source_shape, M_in.new_zeros
        return SiteMaps(M_in, M_out, new_zeros(i_s, 0), new_zeros(o_s, 0))

    def _build_trainable_maps(self) -> dict[SitePair, TrainableMaps]:
        if self.params.init == "closed_form" and self.evidence.activations is not None:
            self.evidence.activations.plan(self.pairs)
        trainable_maps = {}
        for pair in self.pairs:
            delta = self.inputs.adapter.delta(pair.source).scaled(pair.scale)
            device = self.evidence.device
            trainable_maps[pair] = TrainableMaps(
                LowRank(delta.B.to(device), delta.A.to(device)), *self._build_initial_maps(pair)
            )
        return trainable_maps

    def _build_initial_maps(self, pair: SitePair) -> tuple[Tensor, Tensor]:
        """Initial maps, on the worker's device."""
        device = self.evidence.device
        if self.params.init == "closed_form":
            site_evidence = self.evidence.for_site(pair, frozenset({Evidence.ACTIVATIONS}))
            ports: tuple[Port, Port] = ("in", "out")
            M_in, M_out = (get_site_map(site_evidence, port, self.params.ridge)[0] for port in ports)
            return M_in.to(device), M_out.to(device)
        (o_s, i_s), (o_t, i_t) = pair.source_shape, pair.target_shape
        digest = hashlib.sha256(f"{self.params.seed} {pair.source} {pair.target}".encode()).digest()
        random_maps = init_random_maps(i_s, i_t, o_s, o_t, int.from_bytes(digest[:7], "big"))
        return random_maps[0].to(device), random_maps[1].to(device)

    def _make_dataset(self, folder: Path) -> TeacherDataset:
        return TeacherDataset(
            folder,
            self._compute_identity(),
            self._activations.text,
            require_shared_tokens(self.inputs),
            self.params.listed,
            self.params.temperature,
            self.params.objective == "shift",
            self.params.w_mse > 0.0,
        )

    def _compute_identity(self) -> str:
        """Digest of everything this training depends on: adapter, bases, text and settings."""
        return compute_identity(
            key=self._build_key("all").fields, adapter=[self.adapter.repo_id, self.adapter.identity]
        )

    def _read_index(self) -> _CacheIndex | None:
        entry = self.runtime.cache.get(self._build_key("all"))
        if entry is None:
            return None
        sha, _, subfolder = _decode_text(entry["sha"]).partition(":")
        return _CacheIndex(
            RepoRevision(repo_id=_decode_text(entry["repo_id"]), sha=sha, subfolder=subfolder or None),
            frozenset(_decode_text(entry["places"]).split("\n")),
            dict(zip(MEASUREMENT_NAMES, entry["measured"].tolist(), strict=False)),
        )

    def _select_indexed(self, index: _CacheIndex) -> list[SitePair]:
        """This job's site pairs that have cached maps."""
        return [pair for pair in self.pairs if _format_pair(pair) in index.pair_names]

    def _can_store(self) -> bool:
        """May these maps be cached? Not if they would replace a complete set from another adapter."""
        index = self._read_index()
        if index is None or index.trained_on == self.adapter:
            return True
        keys = (
            self._build_key(str(pair.source), str(pair.target), index.trained_on)
            for pair in self._select_indexed(index)
        )
        return self._can_read(index.trained_on.repo_id) and any(
            self.runtime.cache.get(key) is None for key in keys
        )

    def _store(self, maps: CastMaps) -> None:
        cache = self.runtime.cache
        for pair, site_maps in maps.maps.items():
            tensors = {"V": site_maps.V, "E": site_maps.E, "U": site_maps.U, "F": site_maps.F}
            cache.put(self._build_key(str(pair.source), str(pair.target), self.adapter), tensors)
        measurements = torch.tensor([maps.measurements[name] for name in MEASUREMENT_NAMES])
        entry = {
            "repo_id": _encode_text(self.adapter.repo_id),
            "sha": _encode_text(self.adapter.identity),
            "places": _encode_text("\n".join(map(_format_pair, maps.maps))),
            "measured": measurements,
        }
        cache.put(self._build_key("all"), entry)  # written last, so that readers never see a partial set

    def _build_key(self, source: str, target: str = "all", trained_on: RepoRevision | None = None) -> PairKey:
        """`trained_on`: the adapter the maps were trained with. Only the index is stored without it, so that
        no map is read before access to that adapter has been checked."""
        pinned = self.inputs.pinned
        settings = compute_identity(**self.params.model_dump(mode="json", exclude=_IGNORED_SETTINGS))
        suffix = f" of {trained_on.repo_id}@{trained_on.identity}" if trained_on is not None else ""
        return PairKey(
            source_repo=pinned.source.repo_id,
            source_sha=pinned.source.identity,
            source_site=source,
            target_repo=pinned.target.repo_id,
            target_sha=pinned.target.identity,
            target_site=target,
            what=f"heads v{CAST_MAPS_VERSION}.{_LAYOUT_VERSION} {settings}{suffix}",
            anchors=self._activations.text.digest,
        )

    @property
    def _activations(self) -> Activations:
        if self.evidence.activations is None:
            raise LookupError(
                "no activations were collected; the pipeline collects them only for methods that declare "
                "HEADS"
            )
        return self.evidence.activations

    def _can_read(self, repo_id: str) -> bool:
        try:
            self.runtime.hub.check_read(repo_id)
        except (HubUnauthorized, RepoGated, RepoNotFound):
            return False
        return True


def _format_pair(pair: SitePair) -> str:
    return f"{pair.source} to {pair.target}"


def _has_expected_shapes(tensors: Mapping[str, Tensor], pair: SitePair) -> bool:
    (o_s, i_s), (o_t, i_t) = pair.source_shape, pair.target_shape
    if set(tensors) != set("VEUF"):
        return False
    p = tensors["V"].shape[1]
    return [tuple(tensors[name].shape) for name in "VEUF"] == [(i_s, p), (p, i_t), (o_s, p), (o_t, p)]


def _to_device(delta: LowRank, base: CausalLM) -> LowRank:
    return LowRank(delta.B.to(base.device), delta.A.to(base.device))


def _encode_text(text: str) -> Tensor:
    """Text as a tensor: the cache stores only float32 tensors."""
    return torch.tensor([float(ord(character)) for character in text])


def _decode_text(codes: Tensor) -> str:
    return "".join(chr(int(code)) for code in codes.tolist())
