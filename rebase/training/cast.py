"""Training of CAST's maps [004, §3.3], with only the target in memory.

    loss = w_kl · KL(q ‖ p_{T'}) + w_mse · ‖P h_{T'} − h‖² / ‖h‖²        mean over paired positions

q is S+Δ's distribution, or the target's own distribution with the adapter's shift applied
(`rebase.training.losses`). h are S+Δ's final states; with the shift, h and h_{T'} are differences from the
base models' final states. P is trained too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebase.errors import TrainingFailed
from rebase.lora.fold_layers import fold_layers
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.activation_maps import Moments, fit_input_map
from rebase.methods.base import SitePair
from rebase.methods.cast.params import CastParams
from rebase.models.causal_lm import CausalLM, with_deltas
from rebase.report.progress import ProgressReporter
from rebase.runtime import CHECKPOINT_S
from rebase.training.cast_maps import TrainableMaps, TrainableUpdates, TrainedMaps
from rebase.training.loop import (
    CheckpointPolicy,
    Schedule,
    TrainingLog,
    Validation,
    draw_batch_indices,
    run_training_loop,
)
from rebase.training.losses import kl_divergence, projection_loss
from rebase.training.teacher_dataset import TeacherDataset, TeacherExample
from rebase.training.vocab_chunks import compute_final_states, compute_listed_logprobs

MEASUREMENT_NAMES = (  # in the order in which they are stored with the maps
    "cast_coverage",
    "cast_positions",
    "cast_steps",
    "cast_best_step",
    "cast_nats_alone",
    "cast_nats_begun",
    "cast_nats_carried",
)


@dataclass(frozen=True, slots=True)
class CastMaps:
    """Trained maps per site pair, on the CPU, and float32 measurements of the training run."""

    maps: Mapping[SitePair, TrainedMaps]
    measurements: Mapping[str, float]


def train_cast_maps(
    target: CausalLM,
    dataset: TeacherDataset,
    trainable_maps: Mapping[SitePair, TrainableMaps],
    params: CastParams,
    *,
    coverage: float,
    progress: ProgressReporter,
    checkpoint_path: Path | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> CastMaps:
    """Train `trainable_maps` in place. Raises TrainingFailed if the update does not improve on the target
    alone on held-out text, or if there is too little text."""
    train_passages, held_out = dataset.select_passages(held_out=False), dataset.select_passages(held_out=True)
    if not held_out:
        raise TrainingFailed(
            "The text is too short to train on: no sequence is left to evaluate on.",
            hint="Use a longer corpus or shorter sequences (tokens).",
            pointer="/corpus",
        )
    trainer = _CastTrainer(target, dataset, params, trainable_maps)
    baseline = trainer.compute_baseline_divergence(held_out)
    with with_deltas(target, trainer.update):
        initial = trainer.compute_divergence(held_out)
        log = run_training_loop(
            trainer.parameters,
            lambda step: trainer.iter_losses(
                [
                    train_passages[at]
                    for at in draw_batch_indices(params.seed, step, len(train_passages), params.batch)
                ]
            ),
            Schedule(
                params.steps,
                params.learning_rate,
                params.warmup,
                clip=params.clip,
                precision=params.precision,
            ),
            progress=progress,
            seed=params.seed,
            checkpoint_policy=CheckpointPolicy(checkpoint_path, every_seconds=checkpoint_s)
            if checkpoint_path
            else None,
            validation=Validation(
                lambda: trainer.compute_loss(held_out), every=params.evaluate_every, patience=params.patience
            ),
            identity={"lessons": dataset.identity},
        )
    with with_deltas(target, trainer.compute_folded_update()):
        final = trainer.compute_divergence(held_out)
    if final >= baseline:
        raise TrainingFailed(
            "On held-out text, the trained update brings the target no closer to the objective than the "
            "target alone.",
            hint="Train for more steps, on more text (positions, corpus) or with another learning rate.",
            pointer="/method",
        )
    trained_maps = {pair: site_maps.to_trained_maps() for pair, site_maps in trainable_maps.items()}
    return CastMaps(trained_maps, _build_measurements(dataset, coverage, baseline, initial, final, log))


class _CastTrainer:
    """The target with its trainable maps, and its current losses on passages."""

    def __init__(
        self,
        target: CausalLM,
        dataset: TeacherDataset,
        params: CastParams,
        trainable_maps: Mapping[SitePair, TrainableMaps],
    ) -> None:
        self.target, self.dataset, self.params = target, dataset, params
        self.maps_by_site: dict[Site, list[TrainableMaps]] = {}
        self.parameters: dict[str, Tensor] = {}
        for pair, site_maps in trainable_maps.items():
            self.maps_by_site.setdefault(pair.target, []).append(site_maps)
            name = f"{pair.source} to {pair.target}"
            self.parameters |= {f"{name}.E": site_maps.E, f"{name}.F": site_maps.F}
        self.update = TrainableUpdates(self.maps_by_site)
        self.shared_ids = dataset.shared_tokens.target.to(target.device)
        self.projection: Tensor | None = None
        if params.w_mse > 0.0:
            self.projection = (
                _fit_initial_projection(dataset, params.ridge).to(target.device).requires_grad_()
            )
            self.parameters["states.P"] = self.projection

    @torch.no_grad()
    def compute_folded_update(self) -> dict[Site, LowRank]:
        """The update to transfer: where several layers fold into one, their sum is truncated."""
        return fold_layers(
            {
                site: [site_maps.compute_update() for site_maps in maps]
                for site, maps in self.maps_by_site.items()
            }
        )[0]

    def iter_losses(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The loss of a batch, one part per passage."""
        for number in numbers:
            yield self._compute_example_loss(self.dataset.load_example(self.target, number)) / len(numbers)

    def compute_loss(self, numbers: Sequence[int]) -> float:
        """Mean loss over passages."""
        return sum(float(part) for part in self.iter_losses(numbers))

    @torch.no_grad()
    def compute_divergence(self, numbers: Sequence[int]) -> float:
        """Mean KL(q ‖ p_{T'}) in nats per position, without the state loss."""
        nats = []
        for number in numbers:
            example = self.dataset.load_example(self.target, number)
            nats.append(
                self._compute_example_divergence(
                    example, compute_final_states(self.target, example.ids)[example.positions]
                )
            )
        return float(torch.cat(nats).mean())

    def compute_baseline_divergence(self, numbers: Sequence[int]) -> float:
        """The same for the target without an update."""
        nats = []
        for number in numbers:
            target_logprobs = self.dataset.load_example(self.target, number).target_logprobs.cpu()
            nats.append(
                kl_divergence(
                    target_logprobs, self.dataset.load_base_logprobs(number), self.params.temperature
                )
            )
        return float(torch.cat(nats).mean())

    def _compute_example_loss(self, example: TeacherExample) -> Tensor:
        states = compute_final_states(self.target, example.ids)[example.positions]
        loss = self.params.w_kl * self._compute_example_divergence(example, states).mean()
        if (
            self.projection is not None
            and example.teacher_states is not None
            and example.base_states is not None
        ):
            state_change = states.float() - example.base_states
            loss = loss + self.params.w_mse * projection_loss(
                example.teacher_states, state_change, self.projection
            )
        return loss

    def _compute_example_divergence(self, example: TeacherExample, states: Tensor) -> Tensor:
        logprobs = compute_listed_logprobs(
            self.target, states, self.shared_ids, example.columns, self.params.temperature
        )
        return kl_divergence(example.target_logprobs, logprobs, self.params.temperature)


def _fit_initial_projection(dataset: TeacherDataset, ridge: float) -> Tensor:
    """Initial projection of the hidden states: the closed-form map between the base models' own states."""
    moments: Moments | None = None
    for number in dataset.select_passages(held_out=False):
        source, target = dataset.load_base_states(number)
        moments = moments or Moments.zeros(source.shape[1], target.shape[1])
        moments.add(source, target)
    if moments is None:
        raise LookupError("no passage to train on")
    return fit_input_map(moments, ridge).float()


def _build_measurements(
    dataset: TeacherDataset, coverage: float, baseline: float, initial: float, final: float, log: TrainingLog
) -> dict[str, float]:
    steps, best_step = float(len(log.losses)), float(log.best_step)
    values = (coverage, float(dataset.text.num_positions), steps, best_step, baseline, initial, final)
    # Rounded to float32, as they will be when read back from the cache.
    return dict(zip(MEASUREMENT_NAMES, torch.tensor(values, dtype=torch.float32).tolist(), strict=True))
