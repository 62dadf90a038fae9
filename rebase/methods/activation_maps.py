"""Closed-form maps between two sites from second moments of paired activations.

    x_s ≈ M_in x_t,    M_in  = X_sX_tᵀ (X_tX_tᵀ + λI)⁻¹
    y_t ≈ M_out y_s,   M_out = Y_tY_sᵀ (Y_sY_sᵀ + λI)⁻¹

Uncentred: an offset could not be folded into a LoRA without a bias. Only d×d sums are kept, so memory does
not grow with the text. They depend only on the two bases: each further adapter costs two products per site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank
from rebase.methods.base import Port, SiteEvidence

_MIN_RELATIVE_POWER = 1e-12  # share of the rows' power: smaller variation is rounding error
_MIN_SINGULAR_RATIO = 1e-6  # relative to the largest singular value of M_out·B; below is float32 rounding


@dataclass(slots=True)
class Moments:
    """Sums over paired rows: `source` Σ x_s x_sᵀ (p, p), `target` Σ x_t x_tᵀ (q, q), `cross` Σ x_s x_tᵀ
    (p, q)."""

    source: Tensor
    target: Tensor
    cross: Tensor
    rows: int = 0

    @classmethod
    def zeros(cls, source_width: int, target_width: int, device: torch.device | str = "cpu") -> Moments:
        """Empty sums, float64."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            empty(source_width, source_width),
            empty(target_width, target_width),
            empty(source_width, target_width),
        )

    def add(self, source: Tensor, target: Tensor) -> None:
        """Add paired rows (n, p) and (n, q). Products are computed in float32, sums kept in float64."""
        source, target = source.float(), target.float()
        self.source += source.T @ source
        self.target += target.T @ target
        self.cross += source.T @ target
        self.rows += source.shape[0]

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.source + other.source,
            self.target + other.target,
            self.cross + other.cross,
            self.rows + other.rows,
        )


@dataclass(frozen=True, slots=True)
class PairedRows:
    """Individual paired rows: `source` (n, p), `target` (n, q), float32."""

    source: Tensor
    target: Tensor

    def compute_moments(self) -> Moments:
        """The second moments of these rows."""
        sums = Moments.zeros(self.source.shape[1], self.target.shape[1], self.source.device)
        sums.add(self.source, self.target)
        return sums


def fit_input_map(moments: Moments, ridge: float) -> Tensor:
    """M_in (p, q): maps target inputs to source inputs. λ in units of the mean eigenvalue."""
    return _solve_ridge(moments.cross, moments.target, ridge)


def fit_output_map(moments: Moments, ridge: float) -> Tensor:
    """M_out (q, p): maps source outputs to target outputs."""
    return _solve_ridge(moments.cross.T, moments.source, ridge)


@dataclass(frozen=True, slots=True)
class R2:
    """Two R² of one prediction on held-out rows. 1 is perfect; either can be negative, and is NaN if there is
    nothing to explain.

    `r2`: relative to predicting zero, 1 − ‖expected − predicted‖² / ‖expected‖². It credits whatever all rows
    have in common, which is most of the norm in trained models: 0.8 even between unrelated bases. `centered`:
    relative to predicting the rows' mean, so 0 means that no difference between rows is predicted.
    """

    r2: float
    centered: float


def input_r2(delta: LowRank, M_in: Tensor, held_out: PairedRows) -> R2:
    """R² of the adapter's response to mapped inputs: B A M_in x_t as a prediction of B A x_s. Including B
    makes it independent of how the update is factored. With B = Q R, R A gives the same norms."""
    A, M = torch.linalg.qr(delta.B.double()).R @ delta.A.double(), M_in.double()
    expected = held_out.source.double() @ A.T
    predicted = held_out.target.double() @ (A @ M).T
    return _compute_r2(expected, predicted)


def output_r2(B: Tensor, M_out: Tensor, held_out: PairedRows) -> R2:
    """R² of mapped outputs in the adapter's output directions: P M_out y_s as a prediction of P y_t, with P
    the projector onto the range of M_out·B (B: (p, r)). The range can have fewer than r dimensions, as for a
    zero-padded adapter, for which QR would invent directions."""
    U, S, _ = torch.linalg.svd(M_out.double() @ B.double(), full_matrices=False)
    basis = U[:, S.gt(_MIN_SINGULAR_RATIO * S.amax())]
    expected = held_out.target.double() @ basis
    predicted = held_out.source.double() @ (M_out.double().T @ basis)
    return _compute_r2(expected, predicted)


def apply_maps(delta: LowRank, M_in: Tensor, M_out: Tensor) -> LowRank:
    """A' = A M_in, B' = M_out B: the update on the target, with the same rank."""
    return LowRank((M_out.to(delta.B) @ delta.B), delta.A @ M_in.to(delta.A))


def _solve_ridge(cross: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """cross (gram + λI)⁻¹ with λ = ridge × mean eigenvalue, float64."""
    penalty = ridge * float(gram.diagonal().mean())
    system = gram + penalty * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) != 0:  # λ too small for a rank-deficient sum: use the limit, the pseudoinverse
        inverse: Tensor = torch.linalg.pinv(system, hermitian=True)
        return cross @ inverse
    solved: Tensor = torch.cholesky_solve(cross.T, factor).T
    return solved


def _compute_r2(expected: Tensor, predicted: Tensor) -> R2:
    """R² from rows (n, k) of each."""
    if not expected.numel():
        return R2(math.nan, math.nan)
    total, residual = float(expected.square().sum()), float((expected - predicted).square().sum())
    variation = float((expected - expected.mean(0)).square().sum())
    denominators = (total, variation)
    return R2(
        *(
            1.0 - residual / denominator if denominator > _MIN_RELATIVE_POWER * total else math.nan
            for denominator in denominators
        )
    )


# Part of the cache key of maps: raise it whenever the same sums may give different maps.
MAPS_VERSION = 1
DEFAULT_RIDGE = 0.1  # λ in units of the mean eigenvalue, the default of `activation`


def get_site_map(evidence: SiteEvidence, port: Port, ridge: float) -> tuple[Tensor, PairedRows]:
    """M_in (i_s, i_t) or M_out (o_t, o_s), float32, with held-out rows. Cached per pair of bases: each
    further adapter costs two small products per site."""

    def fit() -> dict[str, Tensor]:
        moments, rows = evidence.moments(port), evidence.held_out_rows(port)
        M = fit_input_map(moments, ridge) if port == "in" else fit_output_map(moments, ridge)
        return {"map": M.float(), "source": rows.source, "target": rows.target}

    tensors = evidence.cached_by_hook(port, f"map_{port} v{MAPS_VERSION} ridge {ridge:.9g}", fit)
    return tensors["map"], PairedRows(tensors["source"], tensors["target"])


def fit_metrics(delta: LowRank, evidence: SiteEvidence, ridge: float) -> dict[str, float]:
    """How well this site's maps fit for the adapter, on held-out tokens: see `map_metrics`."""
    M_in, input_rows = get_site_map(evidence, "in", ridge)
    M_out, output_rows = get_site_map(evidence, "out", ridge)
    return map_metrics(delta, M_in, M_out, input_rows, output_rows)


def map_metrics(
    delta: LowRank, M_in: Tensor, M_out: Tensor, input_rows: PairedRows, output_rows: PairedRows
) -> dict[str, float]:
    """`read_r2` (`input_r2`) and `write_r2` (`output_r2`): how well target inputs predict what the adapter
    reads, and source outputs predict the target's in the directions it writes. `…_centred` only count
    differences between tokens, so verdicts use them. At most 1; 0 is chance. Omits non-finite values."""
    input_scores, output_scores = input_r2(delta, M_in, input_rows), output_r2(delta.B, M_out, output_rows)
    metrics = {
        "read_r2": input_scores.r2,
        "read_r2_centred": input_scores.centered,
        "write_r2": output_scores.r2,
        "write_r2_centred": output_scores.centered,
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
