"""Both halves of a distillation in one call, for tests that have both bases loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base_params import DistillSettings
from rebase.models.causal_lm import CausalLM
from rebase.report.progress import ProgressReporter
from rebase.runtime import CHECKPOINT_S
from rebase.training.distillation import DistillResult, init_factors, train_update
from rebase.training.losses import SharedTokenIds
from rebase.training.sample_generation import generate_samples


def distill(
    source: CausalLM,
    target: CausalLM,
    source_deltas: Mapping[Site, LowRank],
    sites: Mapping[Site, tuple[int, int]],
    params: DistillSettings,
    *,
    rank: int | None = None,
    init: Mapping[Site, LowRank] | None = None,
    watch: ProgressReporter,
    checkpoint_dir: Path | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    common: SharedTokenIds | None = None,
) -> DistillResult:
    """Write, then train. `sites`: of the target, with (outputs, inputs); `rank`: None takes the adapter's;
    `init`: what to begin with, at the sites that it has. Both bases are loaded."""
    journal = checkpoint_dir / "samples.jsonl" if checkpoint_dir else None
    written = generate_samples(
        source, source_deltas, params, progress=watch, path=journal, shared_tokens=common
    )
    wide = rank or max(delta.rank for delta in source_deltas.values())
    begun = init_factors(sites, wide, init, params.seed)
    return train_update(
        target, written, begun, params, progress=watch,
        checkpoint_dir=checkpoint_dir, checkpoint_s=checkpoint_s, shared_tokens=common,
    )  # fmt: skip


def refine(
    source: CausalLM,
    target: CausalLM,
    source_deltas: Mapping[Site, LowRank],
    carried: Mapping[Site, LowRank],
    params: DistillSettings,
    *,
    watch: ProgressReporter,
    checkpoint_dir: Path | None = None,
) -> DistillResult:
    """The same for an update that another method has carried: it is where training begins."""
    sites = {site: delta.shape for site, delta in carried.items()}
    rank = max(delta.rank for delta in carried.values())
    return distill(
        source, target, source_deltas, sites, params,
        rank=rank, init=carried, watch=watch, checkpoint_dir=checkpoint_dir,
    )  # fmt: skip
