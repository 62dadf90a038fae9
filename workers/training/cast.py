"""The training of CAST's heads [004, §3.3], with the target alone in memory.

    loss = w_kl · KL(wanted ‖ p_{T'}) + w_mse · ‖P h_{T'} − h‖² / ‖h‖²        mean over paired positions

`wanted` is S+Δ's distribution or the target's own moved by the adapter's shift
(`rebase.training.losses`); h are S+Δ's final states, or with the shift their difference to S's, as on
the target's side. P is trained too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebase.errors import TrainingFailed
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.activation_maps import Moments, fit_input_map
from rebase.methods.base import SitePair
from rebase.methods.cast.params import CastParams
from rebase.report.progress import ProgressReporter
from rebase.training.cast_maps import TrainableMaps, TrainableUpdates, TrainedMaps
from rebase.training.losses import kl_divergence, projection_loss
from workers.fold import folded
from workers.models import TextModel, updated
from workers.training.lessons import Lesson, Lessons
from workers.training.logits import final_states, outcomes_of
from workers.training.loop import Descent, HeldOut, Saving, Schedule, batch_rows, descend

EVERY_SECONDS = 60.0  # between checkpoints
MEASURED = (  # in the order in which they are kept with the heads
    "cast_coverage",
    "cast_positions",
    "cast_steps",
    "cast_best_step",
    "cast_nats_alone",
    "cast_nats_begun",
    "cast_nats_carried",
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Trained heads per site pair, on the CPU, and float32 figures of the whole training."""

    heads: Mapping[SitePair, TrainedMaps]
    measurements: Mapping[str, float]


def train(
    target: TextModel,
    lessons: Lessons,
    students: Mapping[SitePair, TrainableMaps],
    params: CastParams,
    *,
    covered: float,
    watch: ProgressReporter,
    checkpoint: Path | None = None,
) -> Cast:
    """Train what `students` begin with, in place. Raises TrainingFailed where held-out text says that the
    target is better left alone, or where there is too little text."""
    learnt, apart = lessons.passages(held_out=False), lessons.passages(held_out=True)
    if not apart:
        raise TrainingFailed(
            "The text is too short to train on: no sequence is left to measure with.",
            hint="Give a longer corpus, or ask for shorter sequences (tokens).",
            pointer="/corpus",
        )
    school = _School(target, lessons, params, students)
    alone = school.divergence_alone(apart)
    with updated(target, school.update):
        begun = school.divergence_now(apart)
        told = descend(
            school.parameters,
            lambda step: school.parts(
                [learnt[at] for at in batch_rows(params.seed, step, len(learnt), params.batch)]
            ),
            Schedule(
                params.steps,
                params.learning_rate,
                params.warmup,
                clip=params.clip,
                precision=params.precision,
            ),
            watch=watch,
            seed=params.seed,
            saving=Saving(checkpoint, seconds=EVERY_SECONDS) if checkpoint else None,
            held_out=HeldOut(
                lambda: school.loss_now(apart), every=params.evaluate_every, patience=params.patience
            ),
            identity={"lessons": lessons.identity},
        )
    with updated(target, school.carried()):
        carried = school.divergence_now(apart)
    if carried >= alone:
        raise TrainingFailed(
            "On held-out text the target alone is as near to what is wanted as with the trained update.",
            hint="Train for more steps, on more text (positions, corpus), or at another learning rate.",
            pointer="/method",
        )
    found = {pair: student.to_trained_maps() for pair, student in students.items()}
    return Cast(found, _measured(lessons, covered, alone, begun, carried, told))


class _School:
    """A target with its students, and the losses of passages as it now is."""

    def __init__(
        self,
        target: TextModel,
        lessons: Lessons,
        params: CastParams,
        students: Mapping[SitePair, TrainableMaps],
    ) -> None:
        self.target, self.lessons, self.params = target, lessons, params
        self.by_site: dict[Site, list[TrainableMaps]] = {}
        self.parameters: dict[str, Tensor] = {}
        for pair, student in students.items():
            self.by_site.setdefault(pair.target, []).append(student)
            name = f"{pair.source} to {pair.target}"
            self.parameters |= {f"{name}.E": student.E, f"{name}.F": student.F}
        self.update = TrainableUpdates(self.by_site)
        self.shared = lessons.common.target.to(target.device)
        self.head: Tensor | None = None
        if params.w_mse > 0.0:
            self.head = _head(lessons, params.ridge).to(target.device).requires_grad_()
            self.parameters["states.P"] = self.head

    @torch.no_grad()
    def carried(self) -> dict[Site, LowRank]:
        """What will be carried: where several layers are folded into one, their sum is cut to a rank."""
        return folded(
            {site: [student.compute_update() for student in some] for site, some in self.by_site.items()}, []
        )[0]

    def parts(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The loss of a batch, passage by passage."""
        for number in numbers:
            yield self._loss(self.lessons.lesson(self.target, number)) / len(numbers)

    def loss_now(self, numbers: Sequence[int]) -> float:
        """Mean loss over passages."""
        return sum(float(part) for part in self.parts(numbers))

    @torch.no_grad()
    def divergence_now(self, numbers: Sequence[int]) -> float:
        """Nats per position to what is wanted, without the other part of the loss."""
        nats = []
        for number in numbers:
            lesson = self.lessons.lesson(self.target, number)
            nats.append(self._divergence(lesson, final_states(self.target, lesson.ids)[lesson.at]))
        return float(torch.cat(nats).mean())

    def divergence_alone(self, numbers: Sequence[int]) -> float:
        """The same for the untouched target."""
        nats = []
        for number in numbers:
            wanted = self.lessons.lesson(self.target, number).wanted.cpu()
            nats.append(kl_divergence(wanted, self.lessons.own(number), self.params.temperature))
        return float(torch.cat(nats).mean())

    def _loss(self, lesson: Lesson) -> Tensor:
        states = final_states(self.target, lesson.ids)[lesson.at]
        loss = self.params.w_kl * self._divergence(lesson, states).mean()
        if self.head is not None and lesson.states is not None and lesson.begun is not None:
            change = states.float() - lesson.begun
            loss = loss + self.params.w_mse * projection_loss(lesson.states, change, self.head)
        return loss

    def _divergence(self, lesson: Lesson, states: Tensor) -> Tensor:
        said = outcomes_of(self.target, states, self.shared, lesson.columns, self.params.temperature)
        return kl_divergence(lesson.wanted, said, self.params.temperature)


def _head(lessons: Lessons, ridge: float) -> Tensor:
    """Where the head of the hidden states begins: the closed-form map between both bases' own."""
    sums: Moments | None = None
    for number in lessons.passages(held_out=False):
        source, target = lessons.both_states(number)
        sums = sums or Moments.zeros(source.shape[1], target.shape[1])
        sums.add(source, target)
    if sums is None:
        raise LookupError("no passage to learn from")
    return fit_input_map(sums, ridge).float()


def _measured(
    lessons: Lessons, covered: float, alone: float, begun: float, carried: float, told: Descent
) -> dict[str, float]:
    steps, best = float(len(told.losses)), float(told.best_step)
    values = (covered, float(lessons.text.positions), steps, best, alone, begun, carried)
    # As they will be read again beside kept heads, whose tensors are float32.
    return dict(zip(MEASURED, torch.tensor(values, dtype=torch.float32).tolist(), strict=True))
