"""`cast` inside a job: heads that are already there for this pair of bases, or a training that makes them.

Kept heads hold directions of the adapter that they were trained with, so a job may use them only where it may
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
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.low_rank import LowRank
from rebase.methods.activation_maps import get_site_map
from rebase.methods.base import Evidence, Port, SiteMaps, SitePair
from rebase.methods.cast.params import CastParams
from rebase.report.progress import ProgressReporter
from rebase.report.schema import RepoRevision
from rebase.runtime import Runtime
from rebase.training.cast_maps import CAST_MAPS_VERSION, TrainableMaps, TrainedMaps, init_random_maps
from workers.activations.evidence import Activations
from workers.bases import Bases
from workers.evidence import EvidenceSource
from workers.models import TextModel
from workers.training.cast import MEASURED, Cast, train
from workers.training.checkpoint import identity_of
from workers.training.lessons import Lessons
from workers.training.shared import common_of

_OWN = {"reuse", "refine", "dare"}  # settings that do not change what is trained
_LAYOUT = 3  # of the entries that are kept; 1 did not name the adapter in those that hold heads, 2 no places


@dataclass(frozen=True, slots=True)
class FoundHeads:
    """Heads for a job. `trained_on`: the adapter that they were trained with."""

    at: Callable[[SitePair], SiteMaps]
    measurements: dict[str, float]
    trained_on: RepoRevision


def heads_for(
    opened: LoadedInputs,
    bases: Bases,
    evidence: EvidenceSource,
    pairs: tuple[SitePair, ...],
    params: CastParams,
    tools: Runtime,
    watch: ProgressReporter,
) -> FoundHeads:
    """This adapter's own kept ones, another adapter's where the request wants them, else trained now and
    kept. Raises TrainingFailed."""
    job = _Job(opened, bases, evidence, pairs, params, tools, watch)
    found = job.kept()
    if found is not None and found[1] != job.adapter and not params.reuse:
        found = None
    trained, name = found or job.trained()
    reused = {"cast_reused": 1.0} if name != job.adapter else {}
    return FoundHeads(lambda pair: job.heads(pair, trained), {**trained.measurements, **reused}, name)


@dataclass(frozen=True, slots=True)
class _Note:
    """Whose heads are kept, at which pairs, and what was measured when they were trained."""

    name: RepoRevision
    places: frozenset[str]
    measured: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `heads_for`."""

    opened: LoadedInputs
    bases: Bases
    evidence: EvidenceSource
    pairs: tuple[SitePair, ...]
    params: CastParams
    tools: Runtime
    watch: ProgressReporter

    @property
    def adapter(self) -> RepoRevision:
        """The adapter that is moved."""
        return RepoRevision(repo_id=self.opened.pinned.adapter.repo_id, sha=self.opened.pinned.adapter.sha)

    def kept(self) -> tuple[Cast, RepoRevision] | None:
        """What an earlier job has left for this pair of bases, text and settings, if this one may use it."""
        note = self._note()
        if note is None:
            return None
        if note.name.repo_id != self.adapter.repo_id and not self._readable(note.name.repo_id):
            return None
        heads: dict[SitePair, TrainedMaps] = {}
        for pair in self._in(note):
            found = self.tools.cache.get(self._key(str(pair.source), str(pair.target), note.name))
            if found is None or not _fits(found, pair):
                return None  # entries were evicted: what is left is not what was trained
            heads[pair] = TrainedMaps(**found)
        return (Cast(heads, note.measured), note.name) if heads else None

    def trained(self) -> tuple[Cast, RepoRevision]:
        """Train with this adapter; what comes of it is kept unless another adapter's already is, whole."""
        if not self.bases.fits("target"):
            raise TrainingFailed(
                "The target does not fit into this worker's memory, so nothing can be trained through it "
                "here.",
                hint="Ask for a worker with a larger device, or raise REBASE_MODEL_BYTES if there is room.",
                pointer="/method",
            )
        students = self._students()
        folder = self.tools.scratch_dir / "training" / f"cast-{self._identity()[:32]}"
        lessons = self._lessons(folder)
        source = self.bases.model("source")
        deltas = {site: self.opened.adapter.delta(site) for site in self.opened.adapter.sites}
        covered = lessons.hear(
            source, {site: _on(delta, source) for site, delta in deltas.items()}, self.watch
        )
        del source
        target = self.bases.model("target")
        lessons.look_at(target, self.watch)
        found = train(
            target,
            lessons,
            students,
            self.params,
            covered=covered,
            watch=self.watch,
            checkpoint=folder / "descent.safetensors",
        )
        if self._free():
            self._keep(found)
        shutil.rmtree(folder, ignore_errors=True)
        return found, self.adapter

    def heads(self, pair: SitePair, found: Cast) -> SiteMaps:
        """Whole heads at a pair; those at the beginning where nothing was trained."""
        M_in, M_out = self._begun(pair)
        if pair in found.heads:
            return found.heads[pair].to_site_maps(M_in, M_out)
        (o_s, i_s), nothing = pair.source_shape, M_in.new_zeros
        return SiteMaps(M_in, M_out, nothing(i_s, 0), nothing(o_s, 0))

    def _students(self) -> dict[SitePair, TrainableMaps]:
        if self.params.init == "closed_form" and self.evidence.activations is not None:
            self.evidence.activations.plan(self.pairs)
        found = {}
        for pair in self.pairs:
            delta = self.opened.adapter.delta(pair.source).scaled(pair.scale)
            device = self.evidence.device
            found[pair] = TrainableMaps(LowRank(delta.B.to(device), delta.A.to(device)), *self._begun(pair))
        return found

    def _begun(self, pair: SitePair) -> tuple[Tensor, Tensor]:
        """Heads before any training, on the worker's device."""
        device = self.evidence.device
        if self.params.init == "closed_form":
            seen = self.evidence.at(pair, frozenset({Evidence.ACTIVATIONS}))
            ports: tuple[Port, Port] = ("in", "out")
            M_in, M_out = (get_site_map(seen, port, self.params.ridge)[0] for port in ports)
            return M_in.to(device), M_out.to(device)
        (o_s, i_s), (o_t, i_t) = pair.source_shape, pair.target_shape
        place = hashlib.sha256(f"{self.params.seed} {pair.source} {pair.target}".encode()).digest()
        drawn = init_random_maps(i_s, i_t, o_s, o_t, int.from_bytes(place[:7], "big"))
        return drawn[0].to(device), drawn[1].to(device)

    def _lessons(self, folder: Path) -> Lessons:
        return Lessons(
            folder,
            self._identity(),
            self._activations.text,
            common_of(self.opened),
            self.params.listed,
            self.params.temperature,
            self.params.objective == "shift",
            self.params.w_mse > 0.0,
        )

    def _identity(self) -> str:
        """Of this training: the adapter, the bases, the text and the settings."""
        return identity_of(key=self._key("all").fields, adapter=[self.adapter.repo_id, self.adapter.sha])

    def _note(self) -> _Note | None:
        told = self.tools.cache.get(self._key("all"))
        if told is None:
            return None
        return _Note(
            RepoRevision(repo_id=_text(told["repo_id"]), sha=_text(told["sha"])),
            frozenset(_text(told["places"]).split("\n")),
            dict(zip(MEASURED, told["measured"].tolist(), strict=False)),
        )

    def _in(self, note: _Note) -> list[SitePair]:
        """This job's pairs that have kept heads."""
        return [pair for pair in self.pairs if _place(pair) in note.places]

    def _free(self) -> bool:
        """May this training be kept? Not in place of another adapter's, unless part of that was evicted."""
        note = self._note()
        if note is None or note.name == self.adapter:
            return True
        keys = (self._key(str(pair.source), str(pair.target), note.name) for pair in self._in(note))
        return self._readable(note.name.repo_id) and any(self.tools.cache.get(key) is None for key in keys)

    def _keep(self, found: Cast) -> None:
        cache = self.tools.cache
        for pair, trained in found.heads.items():
            tensors = {"V": trained.V, "E": trained.E, "U": trained.U, "F": trained.F}
            cache.put(self._key(str(pair.source), str(pair.target), self.adapter), tensors)
        figures = torch.tensor([found.measurements[name] for name in MEASURED])
        told = {
            "repo_id": _codes(self.adapter.repo_id),
            "sha": _codes(self.adapter.sha),
            "places": _codes("\n".join(map(_place, found.heads))),
            "measured": figures,
        }
        cache.put(self._key("all"), told)  # last: a reader finds all or nothing

    def _key(self, source: str, target: str = "all", of: RepoRevision | None = None) -> PairKey:
        """`of`: whose training the heads come from. Only the note that says whose they are goes without, so
        that no heads are read before it is known whether this job may read that adapter."""
        pinned = self.opened.pinned
        settings = identity_of(**self.params.model_dump(mode="json", exclude=_OWN))
        whose = f" of {of.repo_id}@{of.sha}" if of is not None else ""
        return PairKey(
            source_repo=pinned.source.repo_id,
            source_sha=pinned.source.sha,
            source_site=source,
            target_repo=pinned.target.repo_id,
            target_sha=pinned.target.sha,
            target_site=target,
            what=f"heads v{CAST_MAPS_VERSION}.{_LAYOUT} {settings}{whose}",
            anchors=self._activations.text.digest,
        )

    @property
    def _activations(self) -> Activations:
        if self.evidence.activations is None:
            raise LookupError("no text was read; the pipeline gathers it for methods that declare HEADS")
        return self.evidence.activations

    def _readable(self, repo_id: str) -> bool:
        try:
            self.tools.hub.check_read(repo_id)
        except (HubUnauthorized, RepoGated, RepoNotFound):
            return False
        return True


def _place(pair: SitePair) -> str:
    return f"{pair.source} to {pair.target}"


def _fits(found: Mapping[str, Tensor], pair: SitePair) -> bool:
    (o_s, i_s), (o_t, i_t) = pair.source_shape, pair.target_shape
    if set(found) != set("VEUF"):
        return False
    p = found["V"].shape[1]
    return [tuple(found[name].shape) for name in "VEUF"] == [(i_s, p), (p, i_t), (o_s, p), (o_t, p)]


def _on(delta: LowRank, base: TextModel) -> LowRank:
    return LowRank(delta.B.to(base.device), delta.A.to(base.device))


def _codes(text: str) -> Tensor:
    """The cache holds float32 tensors alone."""
    return torch.tensor([float(ord(character)) for character in text])


def _text(codes: Tensor) -> str:
    return "".join(chr(int(code)) for code in codes.tolist())
