"""`distill`: a fresh adapter of the target, trained on what the source and its adapter write; no text of the
task is needed. After Trans-LoRA [2405.17258] and TiTok [2510.04682].

    min over B, A:  − Σ_kept log P_{T+BA}(token) + shift · Σ_places KL(q ‖ P_{T+BA}),  q ∝ P_T P_{S+Δ} / P_S

Samples that are held out tell, without labels, when to stop and how much was recovered. Tokenizers differ, so
figures are nats per byte of written text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base_params import DistillSettings
from rebase.report.progress import ProgressReporter
from rebase.training.losses import SharedTokenIds
from transfer.linalg import truncate
from workers.models import TextModel, updated
from workers.training.checkpoint import identity_of
from workers.training.loop import Descent, HeldOut, Saving, Schedule, batch_rows, descend
from workers.training.rows import Losses, Row, divided, losses, parts, rows_of, shift_missed, shifted
from workers.training.samples import Written
from workers.training.written import digest

EVERY_SECONDS = 60.0  # between checkpoints
_SMALLEST_GAIN = 0.01  # nats per byte; a share of less would be noise


@dataclass(frozen=True, slots=True)
class Distilled:
    """`deltas`: the target's update on the CPU, scale included; `measurements`: finite floats of the whole
    job; `curve`: held-out loss in nats per learnt token against steps."""

    deltas: dict[Site, LowRank]
    measurements: dict[str, float]
    curve: tuple[Mapping[str, float], ...]


def train(
    target: TextModel,
    written: Written,
    begun: Mapping[Site, LowRank],
    params: DistillSettings,
    *,
    watch: ProgressReporter,
    checkpoint_dir: Path | None = None,
    common: SharedTokenIds | None = None,
) -> Distilled:
    """Train on what was written; needs the target alone. `begun`: factors at every site (`starting`).
    `common`: the tokens on which the shift was kept, where the settings ask for it.

    Files below `checkpoint_dir` let the same call go on where it was stopped. Raises TrainingFailed.
    """
    rows = rows_of(target, written.samples, params)
    common = common if params.shift > 0.0 else None
    if common is not None:
        rows = shifted(target, rows, common)
    learnt, held_out = divided(rows, params.held_out)
    deltas = {site: _leaves(_on(delta, target.device)) for site, delta in begun.items()}
    parameters = {
        f"{site}.{name}": getattr(delta, name) for site, delta in deltas.items() for name in ("A", "B")
    }
    alone = losses(target, held_out)
    told_shift = {"distill_shift_alone": shift_missed(target, held_out, common)} if common else {}
    with updated(target, deltas):
        told = descend(
            parameters,
            lambda step: parts(
                target,
                [learnt[at] for at in batch_rows(params.seed, step, len(learnt), params.batch)],
                params.shift,
                common,
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
            saving=Saving(checkpoint_dir / "descent.safetensors", seconds=EVERY_SECONDS)
            if checkpoint_dir
            else None,
            held_out=HeldOut(
                lambda: losses(target, held_out).kept, every=params.evaluate_every, patience=params.patience
            ),
            identity=_identity(params, written, begun),
        )
        carried = losses(target, held_out)
        if common is not None:
            told_shift["distill_shift_carried"] = shift_missed(target, held_out, common)
    done = {site: LowRank(delta.B.detach().cpu(), delta.A.detach().cpu()) for site, delta in deltas.items()}
    curve = tuple({"steps": float(step), "held_out": value} for step, value in told.held_out)
    measured = _measured(written, rows, held_out, alone, carried, told) | told_shift
    return Distilled(done, measured, curve)


def starting(
    sites: Mapping[Site, tuple[int, int]],
    rank: int,
    init: Mapping[Site, LowRank] | None,
    seed: int,
) -> dict[Site, LowRank]:
    """Factors of one rank: what `init` gives, then B zero and A uniform within ±1/√inputs, as PEFT begins."""
    noise = torch.Generator().manual_seed(seed)
    found = {}
    for site, (o, i) in sorted(sites.items()):
        A = (2.0 * torch.rand(rank, i, generator=noise) - 1.0) / math.sqrt(i)
        B = torch.zeros(o, rank)
        given = init.get(site) if init else None
        if given is not None:
            given = truncate(given, rank)[0] if given.rank > rank else given
            B[:, : given.rank], A[: given.rank] = given.B.cpu(), given.A.cpu()
        found[site] = LowRank(B, A)
    return found


def _measured(
    written: Written, rows: list[Row], held_out: list[Row], alone: Losses, carried: Losses, told: Descent
) -> dict[str, float]:
    """Figures for the report."""
    return {
        "distill_samples": float(len(written.samples)),
        "distill_tokens": float(written.tokens),
        **{f"distill_dropped_{why}": float(count) for why, count in sorted(written.dropped.items())},
        "distill_learnt_share": sum(sum(row.kept) for row in rows)
        / max(sum(sum(row.written) for row in rows), 1),
        "distill_steps": float(len(told.losses)),
        "distill_best_step": float(told.best_step),
        **{f"distill_{name}": value for name, value in recovered(held_out, alone, carried).items()},
    }


def recovered(held_out: Sequence[Row], alone: Losses, carried: Losses) -> dict[str, float]:
    """Nats per byte of held-out samples. `recovered`: of what the teacher foretells its own text better than
    the target alone, the share that the target now does; 1 is the teacher itself."""
    size = max(sum(row.bytes for row in held_out), 1)
    teacher = -sum(_read(row, row.sample.teacher) for row in held_out) / size
    source = -sum(_read(row, row.sample.source) for row in held_out) / size
    gap = alone.per_byte - teacher
    return {
        "nats_alone": alone.per_byte,
        "nats_carried": carried.per_byte,
        "nats_source": source,
        "nats_teacher": teacher,
        **({"recovered": (alone.per_byte - carried.per_byte) / gap} if gap > _SMALLEST_GAIN else {}),
    }


def _read(row: Row, logs: Sequence[float]) -> float:
    """The sum over what the target has read too: a sample longer than its context was cut."""
    end = row.spans[-1][1] if row.spans else 0
    return sum(log for log, (_, stop) in zip(logs, row.sample.spans, strict=True) if stop <= end)


def _identity(params: DistillSettings, written: Written, begun: Mapping[Site, LowRank]) -> dict[str, str]:
    return {
        "settings": identity_of(**params.model_dump(mode="json")),
        "text": identity_of(texts=[sample.text for sample in written.samples]),
        "begun": digest(begun),
    }


def _on(delta: LowRank, device: torch.device) -> LowRank:
    return LowRank(delta.B.to(device, torch.float32), delta.A.to(device, torch.float32))


def _leaves(delta: LowRank) -> LowRank:
    return LowRank(delta.B.clone().requires_grad_(), delta.A.clone().requires_grad_())
