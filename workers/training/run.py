"""Training inside a job: which models and sites, what comes of it, and where a killed worker goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rebase.errors import TrainingFailed
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.activation_maps import DEFAULT_RIDGE, apply_maps, get_site_map
from rebase.methods.base import Evidence, SitePair
from rebase.methods.base_params import DistillSettings, MethodParams, SamplingParams
from rebase.methods.cast.params import CastParams
from rebase.methods.registry import get_method
from rebase.report.progress import ProgressReporter
from rebase.report.schema import RepoRevision
from rebase.runtime import Runtime
from rebase.training.losses import SharedTokenIds
from workers.bases import Bases
from workers.evidence import EvidenceSource
from workers.fold import folded
from workers.models import TextModel
from workers.training.distill import Distilled, starting, train
from workers.training.heads import heads_for
from workers.training.samples import Written
from workers.training.shared import common_of
from workers.training.step import stepped
from workers.training.written import written_by

Begin = Callable[[TextModel, Written], Mapping[Site, LowRank]]  # the target and what was written → factors


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a job has trained, for its report. `heads_of`: the adapter that kept heads were trained with;
    `curve`: held-out loss on the way, where it is known."""

    measurements: dict[str, float]
    heads_of: RepoRevision | None = None
    curve: tuple[Mapping[str, float], ...] = ()

    def then(self, more: Learnt) -> Learnt:
        """With what was trained after it."""
        return Learnt({**self.measurements, **more.measurements}, self.heads_of, more.curve or self.curve)


def train_if_needed(
    opened: LoadedInputs,
    bases: Bases,
    evidence: EvidenceSource,
    pairs: tuple[SitePair, ...],
    params: MethodParams,
    tools: Runtime,
    watch: ProgressReporter,
) -> tuple[EvidenceSource, Learnt | None]:
    """The evidence with what this method has to have trained, if anything. Raises TrainingFailed."""
    trainer = JobTrainer(opened, bases, evidence, pairs, tools, watch)
    return get_method(params.name).train(params, trainer) or (evidence, None)


@dataclass(frozen=True, slots=True)
class JobTrainer:
    """Implements `rebase.methods.base.Trainer` for one job: trained evidence, and what to report of it."""

    opened: LoadedInputs
    bases: Bases
    evidence: EvidenceSource
    pairs: tuple[SitePair, ...]
    tools: Runtime
    watch: ProgressReporter

    def take_step(
        self, sampling: SamplingParams, *, ridge: float, from_maps: bool
    ) -> tuple[EvidenceSource, Learnt]:
        """The step alone, or from what the maps give. Raises TrainingFailed where it does not help."""
        init = self._closed_form(ridge) if from_maps else None
        with _writing(self.opened, self.bases, sampling, None, self.tools, self.watch) as (_, written, _):
            target = self.bases.model("target")
            found = self._step(target, written, sampling, self._adapter_rank(), ridge=ridge, init=init)
        if found.measurements["step_nats_carried"] >= found.measurements["step_nats_alone"]:
            raise TrainingFailed(
                "No step foretold the held-out text better than the target alone does.",
                hint="Sample more tokens, raise the ridge, or give prompts of the adapter's task.",
                pointer="/method",
            )
        return self._with_update(found)

    def distill(
        self,
        params: DistillSettings,
        *,
        rank: int | None,
        init: Literal["zero", "closed_form", "step"],
    ) -> tuple[EvidenceSource, Learnt]:
        """A trained update; it begins with nothing, with the maps' update, or with one step."""
        sites = {pair.target: pair.target_shape for pair in self.pairs}
        wide = rank or self._adapter_rank()
        maps = self._closed_form(DEFAULT_RIDGE) if init == "closed_form" else None

        def begin(target: TextModel, written: Written) -> Mapping[Site, LowRank]:
            known = maps
            if init == "step":
                known = self._step(target, written, params, wide, ridge=DEFAULT_RIDGE, init=None).deltas
            return starting(sites, wide, known, params.seed)

        return self._with_update(_run(self.opened, self.bases, begin, params, self.tools, self.watch))

    def train_maps(self, params: CastParams) -> tuple[EvidenceSource, Learnt]:
        """Trained maps, or those that another adapter of these bases has left."""
        found = heads_for(self.opened, self.bases, self.evidence, self.pairs, params, self.tools, self.watch)
        return replace(self.evidence, heads=found.at), Learnt(found.measurements, found.trained_on)

    def _with_update(self, found: Distilled) -> tuple[EvidenceSource, Learnt]:
        learnt = Learnt(found.measurements, curve=found.curve)
        return replace(self.evidence, trained=found.deltas), learnt

    def _adapter_rank(self) -> int:
        return max(self.opened.adapter.delta(site).rank for site in self.opened.adapter.sites)

    def _closed_form(self, ridge: float) -> dict[Site, LowRank]:
        return _closed_form(self.opened, self.evidence, self.pairs, ridge)

    def _step(
        self,
        target: TextModel,
        written: Written,
        sampling: SamplingParams,
        rank: int,
        *,
        ridge: float,
        init: Mapping[Site, LowRank] | None,
    ) -> Distilled:
        sites = {pair.target: pair.target_shape for pair in self.pairs}
        begun = {site: _to(delta, target.device) for site, delta in init.items()} if init else None
        return stepped(
            target, written, sites, rank, sampling,
            ridge=ridge, budget=self.tools.activation_bytes, watch=self.watch, begun=begun,
        )  # fmt: skip


def refined(
    opened: LoadedInputs,
    bases: Bases,
    deltas: Mapping[Site, LowRank],
    params: MethodParams,
    tools: Runtime,
    watch: ProgressReporter,
) -> tuple[dict[Site, LowRank], Learnt]:
    """What a method with `refine` carried, trained on; it stays what it was where training brings nothing."""
    settings = params.refine
    assert settings is not None
    rank = max(delta.rank for delta in deltas.values())
    sites = {site: delta.shape for site, delta in deltas.items()}
    begun = starting(sites, rank, deltas, settings.seed)
    found = _run(opened, bases, lambda _target, _written: begun, settings, tools, watch, refines=params)
    return found.deltas, Learnt(found.measurements, curve=found.curve)


def _run(
    opened: LoadedInputs,
    bases: Bases,
    begin: Begin,
    params: DistillSettings,
    tools: Runtime,
    watch: ProgressReporter,
    *,
    refines: MethodParams | None = None,
) -> Distilled:
    """Write, then train. `refines`: the method that carried what training begins with, which stays where
    training brings nothing."""
    with _writing(opened, bases, params, refines, tools, watch) as (folder, written, common):
        target = bases.model("target")
        begun = begin(target, written)
        found = train(target, written, begun, params, watch=watch, checkpoint_dir=folder, common=common)
    told = found.measurements
    better = told["distill_best_step"] > 0.0 or told["distill_nats_carried"] < told["distill_nats_alone"]
    if not better and refines is None:
        raise TrainingFailed(
            "Training never foretold the held-out text better than the target alone does.",
            hint="Sample more tokens, lower the learning rate, or give prompts of the adapter's task.",
            pointer="/method",
        )
    return found


@contextmanager
def _writing(
    opened: LoadedInputs,
    bases: Bases,
    params: SamplingParams,
    refines: MethodParams | None,
    tools: Runtime,
    watch: ProgressReporter,
) -> Iterator[tuple[Path, Written, SharedTokenIds | None]]:
    """A folder for checkpoints, gone when the work is done; what the source and its adapter write; and the
    tokens on which the shift was kept, where it is asked for. The source is let go where there is no room for
    both."""
    if not bases.fits("target"):
        raise TrainingFailed(
            "The target does not fit into this worker's memory, so it cannot be trained here.",
            hint="Ask for a worker with a larger device, or raise REBASE_MODEL_BYTES if there is room.",
            pointer="/method",
        )
    folder = _checkpoints(opened, params, refines, tools)
    folder.mkdir(parents=True, exist_ok=True)
    source = bases.model("source")
    deltas = {site: _to(opened.adapter.delta(site), source.device) for site in opened.adapter.sites}
    common = common_of(opened) if isinstance(params, DistillSettings) and params.shift > 0.0 else None
    written = written_by(source, deltas, params, watch=watch, path=folder / "samples.jsonl", common=common)
    del source, deltas
    yield folder, written, common
    shutil.rmtree(folder, ignore_errors=True)


def _closed_form(
    opened: LoadedInputs, evidence: EvidenceSource, pairs: tuple[SitePair, ...], ridge: float
) -> dict[Site, LowRank]:
    """What `activation` would carry."""
    if evidence.activations is not None:
        evidence.activations.plan(pairs)
    parts: dict[Site, list[LowRank]] = {}
    for pair in pairs:
        seen = evidence.at(pair, frozenset({Evidence.ACTIVATIONS}))
        delta = _to(opened.adapter.delta(pair.source).scaled(pair.scale), evidence.device)
        maps = (get_site_map(seen, port, ridge)[0] for port in ("in", "out"))
        parts.setdefault(pair.target, []).append(_to(apply_maps(delta, *maps), "cpu"))
    return folded(parts, [])[0]


def _checkpoints(
    opened: LoadedInputs, params: SamplingParams, refines: MethodParams | None, tools: Runtime
) -> Path:
    """A folder of this adapter, these bases and these settings: whoever takes the job over finds it."""
    pinned = opened.pinned
    named = [
        pinned.adapter.repo_id,
        pinned.adapter.sha,
        pinned.source.sha,
        pinned.target.repo_id,
        pinned.target.sha,
        params.model_dump(mode="json"),
        refines.model_dump(mode="json") if refines is not None else None,
    ]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
    return tools.scratch_dir / "training" / digest[:32]


def _to(delta: LowRank, device: object) -> LowRank:
    return LowRank(delta.B.to(device), delta.A.to(device))  # type: ignore[call-overload]
