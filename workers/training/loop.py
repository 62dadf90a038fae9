"""Gradient descent as every trained part of a job does it: AdamW, watched, resumable.

The loss is a function of the step alone, so a run that was interrupted and resumed ends, on a CPU, with the
same bytes as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rebase.errors import TrainingFailed
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from workers.training.checkpoint import identity_of, load, save

Precision = Literal["float32", "bfloat16"]
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch's AdamW keeps for each parameter


@dataclass(frozen=True, slots=True)
class Schedule:
    """How far and how fast. `warmup`: steps of linear rise; `clip`: longest gradient norm (0: none);
    `precision`: what autocast computes in, while parameters and sums stay float32."""

    steps: int
    learning_rate: float
    warmup: int = 0
    decay: Literal["linear", "cosine", "constant"] = "linear"
    clip: float = 1.0
    precision: Precision = "float32"

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0. The last step's is above 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        left = (self.steps - step) / max(self.steps - self.warmup, 1)
        shape = {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}
        return self.learning_rate * shape[self.decay]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """When to look at text that is not trained on. `measure`: lower is better; the parameters of the lowest
    are kept. Training ends after `patience` measurements in a row without a new lowest one (0: never)."""

    measure: Callable[[], float]
    every: int = 10
    patience: int = 0


@dataclass(frozen=True, slots=True)
class Saving:
    """Where the state is kept, and how often: after so many steps or seconds, whichever is first."""

    path: Path
    steps: int = 100
    seconds: float = 60.0


@dataclass(slots=True)
class Descent:
    """What happened. `losses`: one a step; `held_out`: (steps done, measurement), from 0 steps on;
    `best_step`: after how many steps the best parameters were seen; `stopped`: all steps done, or patience
    is spent."""

    losses: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    stopped: Literal["steps", "patience"] | None = None

    @property
    def best(self) -> float:
        """The lowest held-out measurement; infinity before the first."""
        return min((value for _, value in self.held_out), default=math.inf)


def descend(
    parameters: Mapping[str, Tensor],
    loss: Callable[[int], Tensor | Iterator[Tensor]],
    schedule: Schedule,
    *,
    watch: ProgressReporter,
    seed: int,
    saving: Saving | None = None,
    held_out: HeldOut | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Descent:
    """Lower `loss(step)` in place; at the end the parameters are the best held-out ones, else the last.

    `loss` must depend on nothing but the parameters, `seed` and the step (`batch_rows` draws such batches).
    It may yield parts that add up; no more than one part's graph is then held at a time.
    `identity`: JSON values that say what is trained on; a checkpoint of another one is not used. Raises
    TrainingFailed when the loss or its gradient is not finite, and whatever `watch` raises to stop.
    """
    state = _State(parameters, schedule, saving, _identity(parameters, schedule, seed, held_out, identity))
    state.resume()
    told = state.told
    while told.stopped is None:
        done = len(told.losses)
        watch.update(Phase.TRAINING, done, schedule.steps, "steps")
        if held_out and (done % held_out.every == 0 or done == schedule.steps):
            state.measure(held_out)
        if done == schedule.steps:
            told.stopped = "steps"
        elif told.stopped is None:
            state.step(loss)
        state.save_when_due()
    watch.update(Phase.TRAINING, len(told.losses), schedule.steps, "steps")
    state.settle(held_out is not None)
    return told


def batch_rows(seed: int, step: int, count: int, size: int) -> list[int]:
    """Which of `count` rows the batch of a step holds: shuffled passes over all rows, one after another."""
    rows: list[int] = []
    for position in range(step * size, (step + 1) * size):
        order = _order(seed, position // count, count)
        rows.append(order[position % count])
    return rows


def _order(seed: int, turn: int, count: int) -> list[int]:
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))
    return [int(row) for row in shuffled]


class _State:
    """Parameters, optimiser and history; `best`: a copy of the parameters that did best so far."""

    def __init__(
        self, parameters: Mapping[str, Tensor], schedule: Schedule, saving: Saving | None, identity: str
    ) -> None:
        self.parameters, self.schedule, self.saving, self.identity = parameters, schedule, saving, identity
        self.optimizer = torch.optim.AdamW(
            list(parameters.values()), lr=schedule.learning_rate, weight_decay=0.0
        )
        self.best: dict[str, Tensor] = {}
        self.told = Descent()
        self.saved_step, self.saved_at = 0, time.monotonic()

    def step(self, loss: Callable[[int], Tensor | Iterator[Tensor]]) -> None:
        """One update of every parameter."""
        done = len(self.told.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(done)
        device = next(iter(self.parameters.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.schedule.precision == "bfloat16"):
            whole = loss(done)
            value = 0.0
            for part in [whole] if isinstance(whole, Tensor) else whole:
                value += float(part.detach())
                part.backward()  # type: ignore[no-untyped-call]
        clip = self.schedule.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), clip)
        self.told.losses.append(value)
        if not (math.isfinite(self.told.losses[-1]) and math.isfinite(float(norm))):
            raise TrainingFailed(
                f"The loss stopped being a finite number at step {done + 1} of {self.schedule.steps}.",
                hint="Lower the method's learning_rate or raise its warmup.",
                pointer="/method/learning_rate",
            )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, held_out: HeldOut) -> None:
        """Keep a copy of the parameters if they are the best so far; stop when patience is spent."""
        done, told = len(self.told.losses), self.told
        if told.held_out and told.held_out[-1][0] == done:
            return  # measured before the state was saved
        with torch.no_grad():
            value = held_out.measure()
        value = value if math.isfinite(value) else math.inf
        if value < told.best or not told.held_out:
            told.best_step = done
            self.best = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        told.held_out.append((done, value))
        waited = sum(1 for step, _ in told.held_out if step > told.best_step)
        if held_out.patience and waited >= held_out.patience:
            told.stopped = "patience"

    def save_when_due(self) -> None:
        """Write the state after enough steps or seconds, and at the end."""
        if self.saving is None:
            return
        done, now = len(self.told.losses), time.monotonic()
        due = done - self.saved_step >= self.saving.steps or now - self.saved_at >= self.saving.seconds
        if due or self.told.stopped is not None:
            save(self.saving.path, self._tensors(), asdict(self.told), self.identity)
            self.saved_step, self.saved_at = done, now

    def resume(self) -> None:
        """Go on from a sound checkpoint of the same descent, if there is one."""
        found = load(self.saving.path, self.identity) if self.saving else None
        if found is None:
            return
        tensors, facts = found
        self.told = Descent(
            facts["losses"],
            [(int(step), value) for step, value in facts["held_out"]],
            facts["best_step"],
            facts["stopped"],
        )
        self.saved_step = len(self.told.losses)
        moments: dict[int, dict[str, Tensor]] = {}
        for at, (name, parameter) in enumerate(self.parameters.items()):
            with torch.no_grad():
                parameter.copy_(tensors.pop(f"now/{name}"))
            if f"best/{name}" in tensors:
                self.best[name] = tensors.pop(f"best/{name}").to(parameter.device)
            known = {key: tensors[f"{key}/{name}"] for key in _MOMENTS if f"{key}/{name}" in tensors}
            if known:
                moments[at] = known
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def settle(self, by_measurement: bool) -> None:
        """Leave the best parameters in place of the last ones."""
        if by_measurement:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.best[name])

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"now/{name}": tensor for name, tensor in self.parameters.items()}
        named |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.parameters.items():
            known = self.optimizer.state.get(parameter, {})
            named |= {f"{key}/{name}": known[key] for key in _MOMENTS if key in known}
        return named


def _identity(
    parameters: Mapping[str, Tensor],
    schedule: Schedule,
    seed: int,
    held_out: HeldOut | None,
    identity: Mapping[str, Any] | None,
) -> str:
    return identity_of(
        shapes={name: list(tensor.shape) for name, tensor in parameters.items()},
        schedule=asdict(schedule),
        seed=seed,
        held_out=[held_out.every, held_out.patience] if held_out else None,
        trained_on=dict(identity or {}),
    )
