"""Anchor-locked Procrustes [000, geometric alignment], with the rotation applied in the right direction.

Per port, a partial isometry R with A_s R ≈ A_t is fitted to both bases' activations at the same text
positions. Then ΔW_t = R_outᵀ ΔW_s R_in. (The paper prints R ΔW Rᵀ, which rotates in the wrong direction: on a
target that is a rotated copy of the source, its error is 1.44 times the update's norm.) Reflections are
allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rebase.lora.linalg import frobenius, procrustes
from rebase.lora.low_rank import LowRank
from rebase.methods._alignment import align
from rebase.methods._common import require_sites
from rebase.methods.base import (
    BasePairInfo,
    CorpusNeeds,
    Evidence,
    Method,
    Port,
    SiteEvidence,
    SitePair,
    SiteResult,
)
from rebase.methods.geometric.params import GeometricParams

# Part of the cache key of a rotation: raise it whenever the same rows may give another one.
ROTATION_VERSION = 1

_METRIC_NAMES = ("residual", "null", "span", "locks_violated", "det")


class Geometric(Method[GeometricParams]):
    """Rank-preserving; also norm-preserving on the span of the paired activations."""

    name: ClassVar[str] = "geometric"

    def needs(self, params: GeometricParams) -> frozenset[Evidence]:
        """Paired activations."""
        return frozenset({Evidence.ACTIVATIONS})

    def prepare(self, params: GeometricParams, pair: BasePairInfo) -> None:
        """Raises IncompatiblePair if there are no sites."""
        require_sites(pair)

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[GeometricParams, ...]:
        """The defaults, if the bases may be run on a text."""
        return (GeometricParams(),) if allow_text else ()

    def corpus_needs(self, params: GeometricParams) -> CorpusNeeds:
        """Semantic primes first, and as many individual rows as are matched."""
        return CorpusNeeds(
            positions=params.positions, rows=params.anchors, primes_first=True, writes=params.writes
        )

    def transfer_site(
        self, params: GeometricParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> SiteResult:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t).

        Measured per port: `residual` and `null` on held-out positions (correctly paired, shuffled), `span`
        the share of directions that the positions determine, `locks_violated` the share of positions whose
        lock is violated, `det` the sign of the determinant of a square rotation (0 if widths differ).
        """
        R_in, input_metrics = _get_rotation(params, evidence, "in")
        R_out, output_metrics = _get_rotation(params, evidence, "out")
        result = LowRank(R_out.T @ delta.B, delta.A @ R_in)
        norm_before = frobenius(delta)
        measured = {f"anchor_{key}_in": value for key, value in input_metrics.items()}
        measured |= {f"anchor_{key}_out": value for key, value in output_metrics.items()}
        measured["update_norm"] = frobenius(result)
        measured["norm_ratio"] = measured["update_norm"] / norm_before if norm_before > 0.0 else 0.0
        violated = input_metrics["locks_violated"] > 0.0 or output_metrics["locks_violated"] > 0.0
        return SiteResult(result, measured, ("locks_infeasible",) if violated and params.lock_rounds else ())


def _get_rotation(
    params: GeometricParams, evidence: SiteEvidence, port: Port
) -> tuple[Tensor, dict[str, float]]:
    """The port's rotation (width_s, width_t) and the measurements from its fit."""

    def fit() -> dict[str, Tensor]:
        rows = evidence.rows(port, params.anchors)
        alignment = align(rows.source, rows.target)
        locked = solve_locked_procrustes(rows.source, rows.target, params.lock_rounds, alignment.rotation)
        R = locked.rotation
        square = R.shape[0] == R.shape[1]
        det = float(torch.linalg.det(R.double()).sign()) if square else 0.0
        measured = torch.tensor(
            [
                alignment.residual,
                alignment.shuffled_residual,
                alignment.reachable_share,
                locked.violation_rate,
                det,
            ]
        )
        return {"rotation": R.float(), "measured": measured}

    name = f"rotation v{ROTATION_VERSION} anchors {params.anchors} rounds {params.lock_rounds}"
    tensors = evidence.cached_by_hook(port, name, fit)
    return tensors["rotation"], dict(zip(_METRIC_NAMES, tensors["measured"].tolist(), strict=True))


# Orthogonal Procrustes with the constraint ⟨a_i R, b_i⟩ > 0 for every row [000, anchor locks]. Flipping
# signs afterwards would leave the optimum. Instead, the weights of violating rows are raised and the
# weighted problem is solved again, until every lock holds or the rounds are used up.

_WEIGHT_FACTOR = 2.0  # a violating row weighs twice as much in the next round


@dataclass(frozen=True, slots=True)
class LockedRotation:
    """`rotation` (p, q): A·rotation ≈ B. `violation_rate`: share of rows with a violated lock, in [0, 1]."""

    rotation: Tensor
    violation_rate: float
    rounds: int


def solve_locked_procrustes(A: Tensor, B: Tensor, rounds: int, start: Tensor | None = None) -> LockedRotation:
    """Fit rows A (n, p) to B (n, q). Returns the solution with the fewest violations, the earliest in case of
    ties. `start`: the unweighted solution, if known. Raises ValueError for negative `rounds`."""
    weights = A.new_ones(A.shape[0], 1)
    best: LockedRotation | None = None
    for round_index in range(rounds + 1):
        rotation = procrustes(weights * A, weights * B) if round_index or start is None else start
        is_violated = ((A @ rotation) * B).sum(1) <= 0.0
        violation_rate = float(is_violated.double().mean()) if is_violated.numel() else 0.0
        if best is None or violation_rate < best.violation_rate:
            best = LockedRotation(rotation, violation_rate, round_index)
        if violation_rate == 0.0:
            break
        weights = torch.where(is_violated[:, None], weights * _WEIGHT_FACTOR, weights)
    if best is None:
        raise ValueError("rounds must not be negative")
    return best
