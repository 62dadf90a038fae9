"""Training in a job: chooses models and sites, trains, and resumes after a killed worker."""

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
from rebase.evidence.site_evidence import EvidenceProvider
from rebase.lora.fold_layers import fold_layers
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.activation_maps import DEFAULT_RIDGE, apply_maps, get_site_map
from rebase.methods.base import Evidence, SitePair
from rebase.methods.base_params import DistillSettings, MethodParams, SamplingParams
from rebase.methods.cast.params import CastParams
from rebase.methods.registry import get_method
from rebase.models.base_pair import BasePair
from rebase.models.causal_lm import CausalLM
from rebase.report.progress import ProgressReporter
from rebase.report.schema import RepoRevision
from rebase.runtime import Runtime
from rebase.training.cast_cache import get_or_train_maps
from rebase.training.distillation import DistillResult, init_factors, train_update
from rebase.training.gradient_step import take_step
from rebase.training.logit_shift import require_shared_tokens
from rebase.training.losses import SharedTokenIds
from rebase.training.sample_generation import generate_samples
from rebase.training.samples import SampleSet

InitFactory = Callable[
    [CausalLM, SampleSet], Mapping[Site, LowRank]
]  # the target and the samples → initial factors


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """The result of a job's training, for its report. `maps_trained_on`: the adapter that CAST's maps were
    trained with; `curve`: held-out loss during training, if known."""

    measurements: dict[str, float]
    maps_trained_on: RepoRevision | None = None
    curve: tuple[Mapping[str, float], ...] = ()

    def merge(self, later: TrainingOutcome) -> TrainingOutcome:
        """This outcome combined with that of a later training."""
        return TrainingOutcome(
            {**self.measurements, **later.measurements}, self.maps_trained_on, later.curve or self.curve
        )


def train_if_needed(
    inputs: LoadedInputs,
    models: BasePair,
    evidence: EvidenceProvider,
    pairs: tuple[SitePair, ...],
    params: MethodParams,
    runtime: Runtime,
    progress: ProgressReporter,
) -> tuple[EvidenceProvider, TrainingOutcome | None]:
    """The evidence, with what this method needs trained added. Raises TrainingFailed."""
    trainer = JobTrainer(inputs, models, evidence, pairs, runtime, progress)
    return get_method(params.name).train(params, trainer) or (evidence, None)


@dataclass(frozen=True, slots=True)
class JobTrainer:
    """Implements `rebase.methods.base.Trainer` for one job: returns new evidence and the outcome."""

    inputs: LoadedInputs
    models: BasePair
    evidence: EvidenceProvider
    pairs: tuple[SitePair, ...]
    runtime: Runtime
    progress: ProgressReporter

    def take_step(
        self, sampling: SamplingParams, *, ridge: float, from_maps: bool
    ) -> tuple[EvidenceProvider, TrainingOutcome]:
        """A step from zero, or from the closed-form update. Raises TrainingFailed if it does not help."""
        init = self._compute_closed_form(ridge) if from_maps else None
        with _sample_workspace(self.inputs, self.models, sampling, None, self.runtime, self.progress) as (
            _,
            sample_set,
            _,
        ):
            target = self.models.get_model("target")
            result = self._run_step(
                target, sample_set, sampling, self._get_adapter_rank(), ridge=ridge, init=init
            )
        if result.measurements["step_nats_carried"] >= result.measurements["step_nats_alone"]:
            raise TrainingFailed(
                "No step size predicted the held-out text better than the target alone.",
                hint="Sample more tokens, raise the ridge, or provide prompts of the adapter's task.",
                pointer="/method",
            )
        return self._with_update(result)

    def distill(
        self,
        params: DistillSettings,
        *,
        rank: int | None,
        init: Literal["zero", "closed_form", "step"],
    ) -> tuple[EvidenceProvider, TrainingOutcome]:
        """A trained update, starting from zero, from the closed-form update, or from one gradient step."""
        sites = {pair.target: pair.target_shape for pair in self.pairs}
        update_rank = rank or self._get_adapter_rank()
        closed_form = self._compute_closed_form(DEFAULT_RIDGE) if init == "closed_form" else None

        def make_init(target: CausalLM, sample_set: SampleSet) -> Mapping[Site, LowRank]:
            init_update = closed_form
            if init == "step":
                init_update = self._run_step(
                    target, sample_set, params, update_rank, ridge=DEFAULT_RIDGE, init=None
                ).deltas
            return init_factors(sites, update_rank, init_update, params.seed)

        return self._with_update(
            _sample_and_train(self.inputs, self.models, make_init, params, self.runtime, self.progress)
        )

    def train_maps(self, params: CastParams) -> tuple[EvidenceProvider, TrainingOutcome]:
        """CAST's maps, trained or cached. Raises TrainingFailed."""
        result = get_or_train_maps(
            self.inputs, self.models, self.evidence, self.pairs, params, self.runtime, self.progress
        )
        return replace(self.evidence, get_trained_maps=result.get_site_maps), TrainingOutcome(
            result.measurements, result.trained_on
        )

    def _with_update(self, result: DistillResult) -> tuple[EvidenceProvider, TrainingOutcome]:
        outcome = TrainingOutcome(result.measurements, curve=result.curve)
        return replace(self.evidence, trained_updates=result.deltas), outcome

    def _get_adapter_rank(self) -> int:
        return max(self.inputs.adapter.delta(site).rank for site in self.inputs.adapter.sites)

    def _compute_closed_form(self, ridge: float) -> dict[Site, LowRank]:
        return _compute_closed_form(self.inputs, self.evidence, self.pairs, ridge)

    def _run_step(
        self,
        target: CausalLM,
        sample_set: SampleSet,
        sampling: SamplingParams,
        rank: int,
        *,
        ridge: float,
        init: Mapping[Site, LowRank] | None,
    ) -> DistillResult:
        sites = {pair.target: pair.target_shape for pair in self.pairs}
        init_on_device = (
            {site: _to_device(delta, target.device) for site, delta in init.items()} if init else None
        )
        return take_step(
            target, sample_set, sites, rank, sampling,
            ridge=ridge, budget=self.runtime.activation_bytes, progress=self.progress, init=init_on_device,
        )  # fmt: skip


def refine(
    inputs: LoadedInputs,
    models: BasePair,
    deltas: Mapping[Site, LowRank],
    params: MethodParams,
    runtime: Runtime,
    progress: ProgressReporter,
) -> tuple[dict[Site, LowRank], TrainingOutcome]:
    """Train the transferred update further (`refine`). It is unchanged if training does not improve it."""
    settings = params.refine
    assert settings is not None
    rank = max(delta.rank for delta in deltas.values())
    sites = {site: delta.shape for site, delta in deltas.items()}
    init = init_factors(sites, rank, deltas, settings.seed)
    result = _sample_and_train(
        inputs, models, lambda _target, _written: init, settings, runtime, progress, refined_method=params
    )
    return result.deltas, TrainingOutcome(result.measurements, curve=result.curve)


def _sample_and_train(
    inputs: LoadedInputs,
    models: BasePair,
    make_init: InitFactory,
    params: DistillSettings,
    runtime: Runtime,
    progress: ProgressReporter,
    *,
    refined_method: MethodParams | None = None,
) -> DistillResult:
    """Generate samples, then train. `refined_method`: the method whose update is refined; without one, raises
    TrainingFailed if training does not improve on the target alone."""
    with _sample_workspace(inputs, models, params, refined_method, runtime, progress) as (
        folder,
        sample_set,
        shared_tokens,
    ):
        target = models.get_model("target")
        init = make_init(target, sample_set)
        result = train_update(
            target,
            sample_set,
            init,
            params,
            progress=progress,
            checkpoint_dir=folder,
            checkpoint_s=runtime.checkpoint_s,
            shared_tokens=shared_tokens,
        )
    measurements = result.measurements
    is_improved = (
        measurements["distill_best_step"] > 0.0
        or measurements["distill_nats_carried"] < measurements["distill_nats_alone"]
    )
    if not is_improved and refined_method is None:
        raise TrainingFailed(
            "Training never predicted the held-out text better than the target alone.",
            hint="Sample more tokens, lower the learning rate, or provide prompts of the adapter's task.",
            pointer="/method",
        )
    return result


@contextmanager
def _sample_workspace(
    inputs: LoadedInputs,
    models: BasePair,
    params: SamplingParams,
    refined_method: MethodParams | None,
    runtime: Runtime,
    progress: ProgressReporter,
) -> Iterator[tuple[Path, SampleSet, SharedTokenIds | None]]:
    """A checkpoint folder, deleted on success; samples from the source with its adapter; and the shared
    tokens of the shift, if used. The source may be unloaded if memory cannot hold both models."""
    if not models.fits("target"):
        raise TrainingFailed(
            "The target does not fit into this worker's memory, so it cannot be trained here.",
            hint="Use a worker with more device memory, or raise REBASE_MODEL_BYTES if memory is available.",
            pointer="/method",
        )
    folder = _get_checkpoint_dir(inputs, params, refined_method, runtime)
    folder.mkdir(parents=True, exist_ok=True)
    source = models.get_model("source")
    deltas = {site: _to_device(inputs.adapter.delta(site), source.device) for site in inputs.adapter.sites}
    shared_tokens = (
        require_shared_tokens(inputs) if isinstance(params, DistillSettings) and params.shift > 0.0 else None
    )
    sample_set = generate_samples(
        source, deltas, params, progress=progress, path=folder / "samples.jsonl", shared_tokens=shared_tokens
    )
    del source, deltas
    yield folder, sample_set, shared_tokens
    shutil.rmtree(folder, ignore_errors=True)


def _compute_closed_form(
    inputs: LoadedInputs, evidence: EvidenceProvider, pairs: tuple[SitePair, ...], ridge: float
) -> dict[Site, LowRank]:
    """The update that `activation` would transfer."""
    if evidence.activations is not None:
        evidence.activations.plan(pairs)
    parts: dict[Site, list[LowRank]] = {}
    for pair in pairs:
        site_evidence = evidence.for_site(pair, frozenset({Evidence.ACTIVATIONS}))
        delta = _to_device(inputs.adapter.delta(pair.source).scaled(pair.scale), evidence.device)
        maps = (get_site_map(site_evidence, port, ridge)[0] for port in ("in", "out"))
        parts.setdefault(pair.target, []).append(_to_device(apply_maps(delta, *maps), "cpu"))
    return fold_layers(parts)[0]


def _get_checkpoint_dir(
    inputs: LoadedInputs, params: SamplingParams, refined_method: MethodParams | None, runtime: Runtime
) -> Path:
    """A folder named by adapter, bases and settings, so that another worker can resume the job."""
    pinned = inputs.pinned
    identity = [
        pinned.adapter.repo_id,
        pinned.adapter.identity,
        pinned.source.identity,
        pinned.target.repo_id,
        pinned.target.identity,
        params.model_dump(mode="json"),
        refined_method.model_dump(mode="json") if refined_method is not None else None,
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return runtime.scratch_dir / "training" / digest[:32]


def _to_device(delta: LowRank, device: object) -> LowRank:
    return LowRank(delta.B.to(device), delta.A.to(device))  # type: ignore[call-overload]
