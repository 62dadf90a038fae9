"""One preconditioned step instead of training: one pass forward and back over what the source and its adapter
wrote, then a line search on samples that were held out. No text of the task, no optimiser, no iteration.

The mathematics is in `rebase.training.preconditioned_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base_params import SamplingParams
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from rebase.training.preconditioned_step import LineSearchResult, search_length, solve_step
from transfer.linalg import frobenius, truncate
from workers.models import TextModel, updated
from workers.training.distill import Distilled, recovered, starting
from workers.training.rows import divided, losses, rows_of
from workers.training.samples import Written
from workers.training.slopes import slopes_of

# The first length tried is where the loss would have fallen by so many times itself, fell it as it begins.
# The best ones lay at 2.9 and 3.5 times (two pairs of bases).
_FALL = 2.0
# The longest step at a site, by the norm of its weight. Where a site reads or wants little, K⁻¹ G C⁻¹ is long
# for a small effect; on SmolLM2-135M, steps of up to 17 % cut to 5 % changed the held-out loss by 0.001.
_LONGEST = 0.05


def stepped(
    target: TextModel,
    written: Written,
    sites: Mapping[Site, tuple[int, int]],
    rank: int,
    params: SamplingParams,
    *,
    ridge: float,
    budget: int,
    watch: ProgressReporter,
    begun: Mapping[Site, LowRank] | None = None,
) -> Distilled:
    """The target's update, of `rank` at every site; zero where nothing helps on held-out samples.

    `begun`: an update to take the step from, itself made longer or shorter first, or left out where it harms.

    Costs one pass forward and back over the samples (more where not all sites fit into `budget` bytes) and
    some ten forward over the held-out ones. The same arguments give the same bytes on one machine.
    """
    learnt, held_out = divided(rows_of(target, written.samples, params), params.held_out)

    def tell(done: int, total: int) -> None:
        watch.update(Phase.COLLECTING, done, total, "passages")

    alone = losses(target, held_out)
    tried: list[float] = []

    def along(
        update: Callable[[float], Mapping[Site, LowRank]], still: float, start: float
    ) -> LineSearchResult:
        def loss(length: float) -> float:
            if length == 0.0:
                return still
            watch.update(Phase.TRAINING, len(tried), None, "lengths")
            tried.append(length)
            with updated(target, update(length)):
                return losses(target, held_out).kept

        return search_length(loss, start)

    known = dict(begun or {})
    gain = along(lambda length: _times(known, length), alone.kept, 1.0) if known else None
    known = _times(known, gain.best_length) if gain and gain.best_length > 0.0 else {}
    still = gain.loss if gain else alone.kept
    steps, longest, slope = {}, {}, 0.0
    with updated(target, known):
        for site, sums in slopes_of(target, learnt, sorted(sites), budget, tell):
            found = solve_step(sums, rank, ridge)
            slope += float(((sums.cross.double() @ found.A.double().T) * found.B.double()).sum())
            steps[site] = found
            size = frobenius(found)
            weight = float(torch.linalg.vector_norm(target.weights.weight(site)))
            longest[site] = _LONGEST * weight / size if size > 0.0 else math.inf

    def after(length: float) -> dict[Site, LowRank]:
        taken = {site: delta.scaled(min(length, longest[site])) for site, delta in steps.items()}
        return _sum(known, taken, rank)

    line = along(after, still, -_FALL * still / slope if slope < 0.0 else 1.0)
    carried = after(line.best_length) if line.best_length > 0.0 else known
    with updated(target, carried):
        told = recovered(held_out, alone, losses(target, held_out))
    measured = {
        **{f"step_{name}": value for name, value in told.items()},
        "step_samples": float(len(written.samples)),
        "step_tokens": float(written.tokens),
        "step_length": line.best_length,
        "step_lengths_tried": float(len(tried)),
        **({"step_gain": gain.best_length} if gain else {}),
    }
    on_cpu = {
        site: LowRank(delta.B.cpu(), delta.A.cpu())
        for site, delta in starting(sites, rank, carried, params.seed).items()
    }
    curve = tuple({"length": length, "held_out": value} for length, value in line.evaluations)
    return Distilled(on_cpu, measured, curve)


def _times(updates: Mapping[Site, LowRank], length: float) -> dict[Site, LowRank]:
    return {site: delta.scaled(length) for site, delta in updates.items()}


def _sum(known: Mapping[Site, LowRank], steps: Mapping[Site, LowRank], rank: int) -> dict[Site, LowRank]:
    """Cut exactly to `rank` where there are two."""
    found = dict(steps)
    for site, delta in known.items():
        both = LowRank(torch.cat([delta.B, steps[site].B], 1), torch.cat([delta.A, steps[site].A], 0))
        found[site] = truncate(both, rank)[0]
    return found
