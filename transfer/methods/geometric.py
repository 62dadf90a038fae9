"""Anchor-locked Procrustes [000, geometric alignment], with the update turned the right way round.

Per port a partial isometry R with A_s R ≈ A_t is fitted to the activations of both bases on the same anchors.
Then ΔW_t = R_outᵀ ΔW_s R_in. (The paper prints R ΔW Rᵀ, which undoes the turn twice: on a target that is the
source in turned coordinates it misses by 1.44 of the update's norm.) Reflections are legitimate.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from transfer.activations.locks import locked_procrustes
from transfer.catalogue import GeometricParams
from transfer.interface import Carried, Evidence, LowRank, Pair, Port, SiteEvidence, SitePair
from transfer.linalg import frobenius
from transfer.methods.anchors import align
from transfer.methods.refusals import require_sites

# Part of what names a kept rotation: raise it whenever the same rows may give another one.
ROTATION_VERSION = 1

_MEASURED = ("residual", "null", "span", "locks_violated", "det")


class Geometric:
    """Rank-preserving; norms are kept on the anchors' span."""

    name: ClassVar[str] = "geometric"

    def needs(self, params: GeometricParams) -> frozenset[Evidence]:
        """Paired activations, the primes' first."""
        return frozenset({Evidence.ACTIVATIONS})

    def prepare(self, params: GeometricParams, pair: Pair) -> None:
        """Nothing but that there are sites."""
        require_sites(pair)

    def carry(
        self, params: GeometricParams, state: None, site: SitePair, delta: LowRank, evidence: SiteEvidence
    ) -> Carried:
        """ΔW (o_s, i_s) → ΔW (o_t, i_t).

        Per port: `residual` and `null` on held-out anchors (truly paired, shuffled), `anchor_span` the share
        of directions that the anchors determine, `locks_violated` the share of anchors left on the wrong
        side, `det` the sign of a square rotation (0 where widths differ).
        """
        R_in, reads = _rotation(params, evidence, "in")
        R_out, writes = _rotation(params, evidence, "out")
        moved = LowRank(R_out.T @ delta.B, delta.A @ R_in)
        before = frobenius(delta)
        measured = {f"anchor_{key}_in": value for key, value in reads.items()}
        measured |= {f"anchor_{key}_out": value for key, value in writes.items()}
        measured["update_norm"] = frobenius(moved)
        measured["norm_ratio"] = measured["update_norm"] / before if before > 0.0 else 0.0
        violated = reads["locks_violated"] > 0.0 or writes["locks_violated"] > 0.0
        return Carried(moved, measured, ("locks_infeasible",) if violated and params.lock_rounds else ())


def _rotation(params: GeometricParams, evidence: SiteEvidence, port: Port) -> tuple[Tensor, dict[str, float]]:
    """The port's rotation (width_s, width_t) and what was measured when it was fitted."""

    def fit() -> dict[str, Tensor]:
        rows = evidence.rows(port, params.anchors)
        fitted = align(rows.source, rows.target)
        locked = locked_procrustes(rows.source, rows.target, params.lock_rounds, fitted.rotation)
        R = locked.rotation
        square = R.shape[0] == R.shape[1]
        det = float(torch.linalg.det(R.double()).sign()) if square else 0.0
        measured = torch.tensor([fitted.residual, fitted.null, fitted.reached, locked.violated, det])
        return {"rotation": R.float(), "measured": measured}

    name = f"rotation v{ROTATION_VERSION} anchors {params.anchors} rounds {params.lock_rounds}"
    found = evidence.kept_at(port, name, fit)
    return found["rotation"], dict(zip(_MEASURED, found["measured"].tolist(), strict=True))
