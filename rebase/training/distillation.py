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

from rebase.lora.linalg import truncate
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base_params import DistillSettings
from rebase.models.causal_lm import TextModel, updated
from rebase.report.progress import ProgressReporter
from rebase.training.batches import (
    EncodedSample,
    Losses,
    add_shift_targets,
    compute_losses,
    compute_mean_shift_loss,
    encode_samples,
    iter_loss_parts,
    split_train_val,
)
from rebase.training.checkpoint import compute_identity
from rebase.training.loop import (
    CheckpointPolicy,
    Schedule,
    TrainingLog,
    Validation,
    draw_batch_indices,
    run_training_loop,
)
from rebase.training.losses import SharedTokenIds
from rebase.training.sample_generation import hash_deltas
from rebase.training.samples import SampleSet

CHECKPOINT_SECONDS = 60.0  # between checkpoints
_MIN_GAP = 0.01  # nats per byte; a share of less would be noise


@dataclass(frozen=True, slots=True)
class DistillResult:
    """`deltas`: the target's update on the CPU, scale included; `measurements`: finite floats of the whole
    job; `curve`: held-out loss in nats per learnt token against steps."""

    deltas: dict[Site, LowRank]
    measurements: dict[str, float]
    curve: tuple[Mapping[str, float], ...]


def train_update(
    target: TextModel,
    sample_set: SampleSet,
    init: Mapping[Site, LowRank],
    params: DistillSettings,
    *,
    progress: ProgressReporter,
    checkpoint_dir: Path | None = None,
    shared_tokens: SharedTokenIds | None = None,
) -> DistillResult:
    """Train on what was written; needs the target alone. `begun`: factors at every site (`starting`).
    `common`: the tokens on which the shift was kept, where the settings ask for it.

    Files below `checkpoint_dir` let the same call go on where it was stopped. Raises TrainingFailed.
    """
    rows = encode_samples(target, sample_set.samples, params)
    shared_tokens = shared_tokens if params.shift > 0.0 else None
    if shared_tokens is not None:
        rows = add_shift_targets(target, rows, shared_tokens)
    train_rows, held_out = split_train_val(rows, params.held_out)
    deltas = {site: _make_trainable(_to_device(delta, target.device)) for site, delta in init.items()}
    parameters = {
        f"{site}.{name}": getattr(delta, name) for site, delta in deltas.items() for name in ("A", "B")
    }
    baseline = compute_losses(target, held_out)
    shift_metrics = (
        {"distill_shift_alone": compute_mean_shift_loss(target, held_out, shared_tokens)}
        if shared_tokens
        else {}
    )
    with updated(target, deltas):
        log = run_training_loop(
            parameters,
            lambda step: iter_loss_parts(
                target,
                [
                    train_rows[at]
                    for at in draw_batch_indices(params.seed, step, len(train_rows), params.batch)
                ],
                params.shift,
                shared_tokens,
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
            checkpoint_policy=CheckpointPolicy(
                checkpoint_dir / "descent.safetensors", every_seconds=CHECKPOINT_SECONDS
            )
            if checkpoint_dir
            else None,
            validation=Validation(
                lambda: compute_losses(target, held_out).per_token,
                every=params.evaluate_every,
                patience=params.patience,
            ),
            identity=_build_identity(params, sample_set, init),
        )
        final = compute_losses(target, held_out)
        if shared_tokens is not None:
            shift_metrics["distill_shift_carried"] = compute_mean_shift_loss(target, held_out, shared_tokens)
    update = {site: LowRank(delta.B.detach().cpu(), delta.A.detach().cpu()) for site, delta in deltas.items()}
    curve = tuple({"steps": float(step), "held_out": value} for step, value in log.held_out)
    measurements = _build_measurements(sample_set, rows, held_out, baseline, final, log) | shift_metrics
    return DistillResult(update, measurements, curve)


def init_factors(
    sites: Mapping[Site, tuple[int, int]],
    rank: int,
    init: Mapping[Site, LowRank] | None,
    seed: int,
) -> dict[Site, LowRank]:
    """Factors of one rank: what `init` gives, then B zero and A uniform within ±1/√inputs, as PEFT begins."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for site, (o, i) in sorted(sites.items()):
        A = (2.0 * torch.rand(rank, i, generator=generator) - 1.0) / math.sqrt(i)
        B = torch.zeros(o, rank)
        initial = init.get(site) if init else None
        if initial is not None:
            initial = truncate(initial, rank)[0] if initial.rank > rank else initial
            B[:, : initial.rank], A[: initial.rank] = initial.B.cpu(), initial.A.cpu()
        factors[site] = LowRank(B, A)
    return factors


def _build_measurements(
    sample_set: SampleSet,
    rows: list[EncodedSample],
    held_out: list[EncodedSample],
    baseline: Losses,
    final: Losses,
    log: TrainingLog,
) -> dict[str, float]:
    """Figures for the report."""
    return {
        "distill_samples": float(len(sample_set.samples)),
        "distill_tokens": float(sample_set.tokens),
        **{f"distill_dropped_{why}": float(count) for why, count in sorted(sample_set.dropped.items())},
        "distill_learnt_share": sum(sum(row.loss_mask) for row in rows)
        / max(sum(sum(row.generated_mask) for row in rows), 1),
        "distill_steps": float(len(log.losses)),
        "distill_best_step": float(log.best_step),
        **{
            f"distill_{name}": value for name, value in compute_gap_metrics(held_out, baseline, final).items()
        },
    }


def compute_gap_metrics(
    held_out: Sequence[EncodedSample], baseline: Losses, final: Losses
) -> dict[str, float]:
    """Nats per byte of held-out samples. `recovered`: of what the teacher foretells its own text better than
    the target alone, the share that the target now does; 1 is the teacher itself."""
    num_bytes = max(sum(row.num_bytes for row in held_out), 1)
    teacher = -sum(_sum_read_logprobs(row, row.sample.teacher) for row in held_out) / num_bytes
    source = -sum(_sum_read_logprobs(row, row.sample.source) for row in held_out) / num_bytes
    gap = baseline.per_byte - teacher
    return {
        "nats_alone": baseline.per_byte,
        "nats_carried": final.per_byte,
        "nats_source": source,
        "nats_teacher": teacher,
        **({"recovered": (baseline.per_byte - final.per_byte) / gap} if gap > _MIN_GAP else {}),
    }


def _sum_read_logprobs(row: EncodedSample, logprobs: Sequence[float]) -> float:
    """The sum over what the target has read too: a sample longer than its context was cut."""
    end = row.spans[-1][1] if row.spans else 0
    return sum(log for log, (_, stop) in zip(logprobs, row.sample.spans, strict=True) if stop <= end)


def _build_identity(
    params: DistillSettings, sample_set: SampleSet, init: Mapping[Site, LowRank]
) -> dict[str, str]:
    return {
        "settings": compute_identity(**params.model_dump(mode="json")),
        "text": compute_identity(texts=[sample.text for sample in sample_set.samples]),
        "begun": hash_deltas(init),
    }


def _to_device(delta: LowRank, device: torch.device) -> LowRank:
    return LowRank(delta.B.to(device, torch.float32), delta.A.to(device, torch.float32))


def _make_trainable(delta: LowRank) -> LowRank:
    return LowRank(delta.B.clone().requires_grad_(), delta.A.clone().requires_grad_())
