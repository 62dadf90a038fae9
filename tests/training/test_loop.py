"""Descent: seeded, watched, and the same whether or not it was interrupted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rebase.errors import Cancelled, TrainingFailed
from rebase.report.progress import NullReporter
from rebase.schemas.states import Phase
from rebase.training import checkpoint
from rebase.training.loop import (
    CheckpointPolicy,
    Schedule,
    TrainingLog,
    Validation,
    draw_batch_indices,
    run_training_loop,
)

SCHEDULE = Schedule(steps=12, learning_rate=0.05, warmup=3)


class Stopping(NullReporter):
    """Cancels when so many steps are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        if done == self.after:
            raise Cancelled("enough")


class Regression:
    """Fit a linear map to rows that come in seeded batches."""

    def __init__(self, seed: int = 0) -> None:
        noise = torch.Generator().manual_seed(1)
        self.x, wanted = torch.randn(20, 6, generator=noise), torch.randn(6, 3, generator=noise)
        self.y = self.x @ wanted
        self.W = torch.zeros(6, 3, requires_grad=True)
        self.b = torch.zeros(3, requires_grad=True)
        self.seed, self.calls = seed, 0

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"W": self.W, "b": self.b}

    def loss(self, step: int) -> Tensor:
        self.calls += 1
        rows = draw_batch_indices(self.seed, step, 20, 5)
        return (self.x[rows] @ self.W + self.b - self.y[rows]).square().mean()

    def whole(self) -> float:
        return float((self.x @ self.W + self.b - self.y).square().mean().detach())

    def run(
        self, schedule: Schedule = SCHEDULE, progress: NullReporter | None = None, **options: Any
    ) -> TrainingLog:
        return run_training_loop(
            self.parameters,
            self.loss,
            schedule,
            progress=progress or NullReporter(),
            seed=self.seed,
            **options,
        )


def test_a_descent_lowers_the_loss_and_tells_every_step() -> None:
    seen: list[tuple[Any, ...]] = []

    class Recorder(NullReporter):
        def update(self, *told: Any) -> None:
            seen.append(told)

    model = Regression()
    before = model.whole()

    told = model.run(Schedule(60, 0.1), Recorder())

    assert model.whole() < 0.1 * before
    assert len(told.losses) == 60
    assert told.stopped == "steps"
    assert sorted(set(seen)) == [(Phase.TRAINING, done, 60, "steps") for done in range(61)]


@pytest.mark.parametrize("stop", [0, 1, 4, 11, 12])
def test_an_interrupted_descent_ends_with_the_same_bytes(tmp_path: Path, stop: int) -> None:
    whole = Regression()
    held_out = Validation(whole.whole, every=4)
    expected = whole.run(validation=held_out)

    first = Regression()
    saving = CheckpointPolicy(tmp_path / "descent.safetensors", every_steps=1)
    with pytest.raises(Cancelled):
        first.run(
            progress=Stopping(stop), checkpoint_policy=saving, validation=Validation(first.whole, every=4)
        )
    second = Regression()
    found = second.run(checkpoint_policy=saving, validation=Validation(second.whole, every=4))

    assert found == expected
    assert torch.equal(second.W, whole.W)
    assert torch.equal(second.b, whole.b)
    assert second.calls == 12 - max(stop, 0)


def test_a_finished_descent_is_not_run_again(tmp_path: Path) -> None:
    saving = CheckpointPolicy(tmp_path / "descent.safetensors")
    first = Regression()
    expected = first.run(checkpoint_policy=saving)

    second = Regression()

    assert second.run(checkpoint_policy=saving) == expected
    assert second.calls == 0
    assert torch.equal(second.W, first.W)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other settings", "other text"])
def test_a_damaged_or_foreign_checkpoint_starts_the_descent_afresh(tmp_path: Path, damage: str) -> None:
    saving = CheckpointPolicy(tmp_path / "descent.safetensors")
    schedule = Schedule(12, 0.01) if damage == "other settings" else SCHEDULE
    identity = {"text": "other" if damage == "other text" else "ours"}
    Regression().run(schedule, checkpoint_policy=saving, identity=identity)
    data = bytearray(saving.path.read_bytes())
    if damage == "flipped":
        data[-3] ^= 1
    keep = {"truncated": len(data) - 8, "empty": 0}.get(damage, len(data))
    saving.path.write_bytes(data[:keep])
    fresh, model = Regression(), Regression()
    expected = fresh.run()

    assert model.run(checkpoint_policy=saving, identity={"text": "ours"}) == expected
    assert model.calls == 12
    assert torch.equal(model.W, fresh.W)


def test_a_process_that_dies_while_it_saves_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = CheckpointPolicy(tmp_path / "descent.safetensors", every_steps=1)
    writes = itertools.count()
    real = checkpoint.save_file

    def dying(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        real(tensors, path, metadata=metadata)
        if next(writes) == 5:
            path.write_bytes(path.read_bytes()[:100])
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        Regression().run(checkpoint_policy=saving)
    monkeypatch.undo()
    whole, second = Regression(), Regression()
    expected = whole.run()

    assert second.run(checkpoint_policy=saving) == expected
    assert second.calls == 12 - 5
    assert torch.equal(second.W, whole.W)


def test_gradients_are_cut_to_the_longest_allowed() -> None:
    """Seen on a loss whose first gradient is huge and second is small: AdamW's step shows their ratio."""
    steps = []
    for clip in (1.0, 0.0):
        weight = torch.zeros(1, requires_grad=True)
        run_training_loop(
            {"w": weight},
            lambda step, weight=weight: (1e6 if step == 0 else 1.0) * weight.sum(),
            Schedule(2, 0.1, decay="constant", clip=clip),
            progress=NullReporter(),
            seed=0,
        )
        steps.append(float(weight.detach()))

    assert steps[0] == pytest.approx(-0.2, rel=1e-3)  # both gradients count as 1
    assert steps[1] == pytest.approx(-0.1 - 0.1 * 0.474 / 0.707, rel=0.01)  # the second one is next to none


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_is_a_typed_error(where: str) -> None:
    weight = torch.zeros(1, requires_grad=True)

    def loss(step: int) -> Tensor:
        bad = {"loss": weight.sum() * float("inf"), "gradient": weight.sqrt().sum()}
        return bad[where] if step == 2 else weight.sum() * 0.0

    with pytest.raises(TrainingFailed, match="step 3 of 9") as failed:
        run_training_loop({"w": weight}, loss, Schedule(9, 0.1), progress=NullReporter(), seed=0)
    assert failed.value.code == "training_failed"
    assert failed.value.hint is not None


def test_the_best_held_out_parameters_are_kept_and_waiting_has_an_end() -> None:
    weight = torch.zeros(1, requires_grad=True)
    seen: list[float] = []

    def measure() -> float:
        seen.append(float(weight))
        return abs(seen[-1] - 0.3)

    schedule = Schedule(100, 0.1, decay="constant")
    told = run_training_loop(
        {"w": weight}, lambda _: -weight.sum(), schedule, progress=NullReporter(), seed=0,
        validation=Validation(measure, every=1, patience=4),
    )  # fmt: skip

    assert told.best_step == 3
    assert told.stopped == "patience"
    assert len(told.losses) == 3 + 4
    assert [step for step, _ in told.held_out] == list(range(8))
    assert told.best == min(value for _, value in told.held_out)
    assert float(weight.detach()) == seen[3]


def test_what_never_helps_is_not_kept() -> None:
    weight = torch.full((2,), 0.5, requires_grad=True)

    told = run_training_loop(
        {"w": weight}, lambda _: -weight.sum(), Schedule(8, 0.1), progress=NullReporter(), seed=0,
        validation=Validation(lambda: float(weight.sum()), every=2),
    )  # fmt: skip

    assert told.best_step == 0
    assert weight.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_rate_rises_and_falls(decay: Any, expected: list[float]) -> None:
    schedule = Schedule(6, 1.0, warmup=2, decay=decay)

    assert [schedule.get_learning_rate(step) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_batches_pass_over_every_row_before_any_comes_again() -> None:
    drawn = [row for step in range(4) for row in draw_batch_indices(3, step, 10, 5)]

    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert (
        draw_batch_indices(3, 2, 10, 5) == draw_batch_indices(3, 2, 10, 5) != draw_batch_indices(4, 2, 10, 5)
    )
    assert len(draw_batch_indices(0, 0, 3, 8)) == 8


def test_half_precision_computes_in_halves_and_keeps_whole_parameters() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    kinds: list[torch.dtype] = []

    def loss(_step: int) -> Tensor:
        product = weight @ weight
        kinds.append(product.dtype)
        return product.float().square().mean()

    run_training_loop(
        {"w": weight}, loss, Schedule(2, 0.1, precision="bfloat16"), progress=NullReporter(), seed=0
    )

    assert kinds == [torch.bfloat16] * 2
    assert weight.dtype == torch.float32
