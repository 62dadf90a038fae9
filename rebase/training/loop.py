"""The training loop that all trained methods share: AdamW with validation, early stopping and checkpoints.

Batches depend only on the seed and the step, so on a CPU an interrupted and resumed run ends with the same
bytes as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rebase.errors import TrainingFailed
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from rebase.training.checkpoint import compute_identity, load_checkpoint, save_checkpoint

_MIN_RISE = 0.01  # relative to the total gain; a smaller rise of the loss is ignored
_MIN_IMPROVEMENT = 0.02  # relative to the total gain; a smaller gain in the last interval is convergence


def suggest_more_training(
    curve: Sequence[Mapping[str, float]], text_setting: str, steps_setting: str
) -> str | None:
    """One sentence, or None if more training is unlikely to help. `curve`: points with `steps` and `held_out`
    in nats, the first one untrained; `text_setting`, `steps_setting`: the settings to name."""
    if len(curve) < 2:
        return None
    best = min(range(len(curve)), key=lambda at: curve[at]["held_out"])
    initial, lowest, final = (curve[at]["held_out"] for at in (0, best, -1))
    gain = initial - lowest
    if best == len(curve) - 1:
        if curve[best - 1]["held_out"] - lowest <= _MIN_IMPROVEMENT * gain:
            return None
        return (
            "The held-out loss was still falling when training ended: more steps "
            f"({steps_setting}) may improve the result."
        )
    if best == 0 or final - lowest <= _MIN_RISE * gain:
        return None
    at, steps = (f"{point['steps']:.0f}" for point in (curve[best], curve[-1]))
    return (
        f"The held-out loss was lowest after {at} of {steps} steps; after that, training overfitted its "
        f"text. More text ({text_setting}) may improve the result."
    )


Precision = Literal["float32", "bfloat16"]
_OPTIMIZER_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state per parameter


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps and learning rate. `warmup`: steps of linear warm-up; `clip`: maximum gradient norm (0: no
    clipping); `precision`: autocast's dtype, while parameters and accumulation stay float32."""

    steps: int
    learning_rate: float
    warmup: int = 0
    decay: Literal["linear", "cosine", "constant"] = "linear"
    clip: float = 1.0
    precision: Precision = "float32"

    def get_learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0. It is above 0 in the last step too."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        remaining = (self.steps - step) / max(self.steps - self.warmup, 1)
        decay_factors = {
            "linear": remaining,
            "cosine": 0.5 - 0.5 * math.cos(math.pi * remaining),
            "constant": 1.0,
        }
        return self.learning_rate * decay_factors[self.decay]


@dataclass(frozen=True, slots=True)
class Validation:
    """How often to measure on held-out text. `measure`: lower is better; the parameters with the lowest value
    are kept. Training stops after `patience` measurements without improvement (0: never)."""

    measure: Callable[[], float]
    every: int = 10
    patience: int = 0


@dataclass(frozen=True, slots=True)
class CheckpointPolicy:
    """Where and how often to save: after so many steps or seconds, whichever comes first."""

    path: Path
    every_steps: int = 100
    every_seconds: float = 60.0


@dataclass(slots=True)
class TrainingLog:
    """History of a run. `losses`: one per step; `held_out`: (steps done, measurement), starting at step 0;
    `best_step`: the step count with the best parameters; `stopped`: why training ended."""

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    stopped: Literal["steps", "patience"] | None = None

    @property
    def best(self) -> float:
        """The lowest held-out measurement; infinity before the first."""
        return min((value for _, value in self.held_out), default=math.inf)


def run_training_loop(
    parameters: Mapping[str, Tensor],
    loss: Callable[[int], Tensor | Iterator[Tensor]],
    schedule: Schedule,
    *,
    progress: ProgressReporter,
    seed: int,
    checkpoint_policy: CheckpointPolicy | None = None,
    validation: Validation | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainingLog:
    """Minimize `loss(step)` in place. Ends with the best parameters on held-out text, or the last ones
    without `validation`.

    `loss` must depend only on the parameters, `seed` and the step (`draw_batch_indices` draws such batches).
    It may yield parts that sum to the loss, so that only one part's graph is held at a time.
    `identity`: JSON values describing the training data; a checkpoint with a different one is ignored. Raises
    TrainingFailed if the loss or its gradient is not finite, and whatever `progress` raises to stop.
    """
    state = _TrainingState(
        parameters,
        schedule,
        checkpoint_policy,
        _compute_identity(parameters, schedule, seed, validation, identity),
    )
    state.resume()
    log = state.log
    while log.stopped is None:
        done = len(log.losses)
        progress.update(Phase.TRAINING, done, schedule.steps, "steps")
        if validation and (done % validation.every == 0 or done == schedule.steps):
            state.validate(validation)
        if done == schedule.steps:
            log.stopped = "steps"
        elif log.stopped is None:
            state.step(loss)
        state.save_when_due()
    progress.update(Phase.TRAINING, len(log.losses), schedule.steps, "steps")
    state.restore_best(validation is not None)
    return log


def draw_batch_indices(seed: int, step: int, count: int, size: int) -> list[int]:
    """Indices of the rows (of `count`) in the batch of a step: successive shuffled passes over all rows."""
    rows: list[int] = []
    for position in range(step * size, (step + 1) * size):
        order = _shuffle(seed, position // count, count)
        rows.append(order[position % count])
    return rows


def _shuffle(seed: int, epoch: int, count: int) -> list[int]:
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return [int(row) for row in shuffled]


class _TrainingState:
    """Parameters, optimizer and history; `best_parameters`: a copy of the best ones so far."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        schedule: Schedule,
        checkpoint_policy: CheckpointPolicy | None,
        identity: str,
    ) -> None:
        self.parameters, self.schedule, self.checkpoint_policy, self.identity = (
            parameters,
            schedule,
            checkpoint_policy,
            identity,
        )
        self.optimizer = torch.optim.AdamW(
            list(parameters.values()), lr=schedule.learning_rate, weight_decay=0.0
        )
        self.best_parameters: dict[str, Tensor] = {}
        self.log = TrainingLog()
        self.saved_step, self.saved_at = 0, time.monotonic()

    def step(self, loss: Callable[[int], Tensor | Iterator[Tensor]]) -> None:
        """One update of every parameter."""
        done = len(self.log.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.get_learning_rate(done)
        device = next(iter(self.parameters.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.schedule.precision == "bfloat16"):
            result = loss(done)
            value = 0.0
            for part in [result] if isinstance(result, Tensor) else result:
                value += float(part.detach())
                part.backward()  # type: ignore[no-untyped-call]
        clip = self.schedule.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), clip)
        self.log.losses.append(value)
        if not (math.isfinite(self.log.losses[-1]) and math.isfinite(float(norm))):
            raise TrainingFailed(
                f"The loss became NaN or infinite at step {done + 1} of {self.schedule.steps}.",
                hint="Lower the method's learning_rate or raise its warmup.",
                pointer="/method/learning_rate",
            )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def validate(self, validation: Validation) -> None:
        """Copy the parameters if they are the best so far; stop when patience runs out."""
        done, log = len(self.log.losses), self.log
        if log.held_out and log.held_out[-1][0] == done:
            return  # already measured before the checkpoint was saved
        with torch.no_grad():
            value = validation.measure()
        value = value if math.isfinite(value) else math.inf
        if value < log.best or not log.held_out:
            log.best_step = done
            self.best_parameters = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        log.held_out.append((done, value))
        waited = sum(1 for step, _ in log.held_out if step > log.best_step)
        if validation.patience and waited >= validation.patience:
            log.stopped = "patience"

    def save_when_due(self) -> None:
        """Save a checkpoint if one is due, and at the end."""
        if self.checkpoint_policy is None:
            return
        done, now = len(self.log.losses), time.monotonic()
        due = (
            done - self.saved_step >= self.checkpoint_policy.every_steps
            or now - self.saved_at >= self.checkpoint_policy.every_seconds
        )
        if due or self.log.stopped is not None:
            save_checkpoint(
                self.checkpoint_policy.path, self._collect_tensors(), asdict(self.log), self.identity
            )
            self.saved_step, self.saved_at = done, now

    def resume(self) -> None:
        """Resume from a valid checkpoint of the same run, if there is one."""
        checkpoint = (
            load_checkpoint(self.checkpoint_policy.path, self.identity) if self.checkpoint_policy else None
        )
        if checkpoint is None:
            return
        tensors, metadata = checkpoint
        self.log = TrainingLog(
            metadata["losses"],
            [(int(step), value) for step, value in metadata["held_out"]],
            metadata["best_step"],
            metadata["stopped"],
        )
        self.saved_step = len(self.log.losses)
        moments: dict[int, dict[str, Tensor]] = {}
        for at, (name, parameter) in enumerate(self.parameters.items()):
            with torch.no_grad():
                parameter.copy_(tensors.pop(f"now/{name}"))
            if f"best/{name}" in tensors:
                self.best_parameters[name] = tensors.pop(f"best/{name}").to(parameter.device)
            moment_tensors = {
                key: tensors[f"{key}/{name}"] for key in _OPTIMIZER_STATE_KEYS if f"{key}/{name}" in tensors
            }
            if moment_tensors:
                moments[at] = moment_tensors
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def restore_best(self, has_validation: bool) -> None:
        """Replace the last parameters with the best ones."""
        if has_validation:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.best_parameters[name])

    def _collect_tensors(self) -> dict[str, Tensor]:
        named = {f"now/{name}": tensor for name, tensor in self.parameters.items()}
        named |= {f"best/{name}": tensor for name, tensor in self.best_parameters.items()}
        for name, parameter in self.parameters.items():
            optimizer_state = self.optimizer.state.get(parameter, {})
            named |= {
                f"{key}/{name}": optimizer_state[key]
                for key in _OPTIMIZER_STATE_KEYS
                if key in optimizer_state
            }
        return named


def _compute_identity(
    parameters: Mapping[str, Tensor],
    schedule: Schedule,
    seed: int,
    validation: Validation | None,
    identity: Mapping[str, Any] | None,
) -> str:
    return compute_identity(
        shapes={name: list(tensor.shape) for name, tensor in parameters.items()},
        schedule=asdict(schedule),
        seed=seed,
        held_out=[validation.every, validation.patience] if validation else None,
        trained_on=dict(identity or {}),
    )
