"""Closed-form maps between two sites from second moments of paired activations.

    x_s ≈ M_in x_t,    M_in  = X_sX_tᵀ (X_tX_tᵀ + λI)⁻¹
    y_t ≈ M_out y_s,   M_out = Y_tY_sᵀ (Y_sY_sᵀ + λI)⁻¹

Uncentred: an offset could not be folded into a LoRA without a bias. Only d×d sums are kept, so any amount of
text costs the same memory, and they belong to the pair of bases: a further adapter costs two products a site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank
from rebase.methods.base import Port, SiteEvidence

_MIN_RELATIVE_POWER = 1e-12  # of the rows' power: rows that differ by less than rounding do not differ
_MIN_SINGULAR_RATIO = 1e-6  # of the largest direction that B writes: what is smaller is float32 rounding


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
        """Nothing seen yet; float64."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            empty(source_width, source_width),
            empty(target_width, target_width),
            empty(source_width, target_width),
        )

    def add(self, source: Tensor, target: Tensor) -> None:
        """Paired rows (n, p) and (n, q). Products in float32 within the call, sums in float64."""
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
    """Paired rows as they came: `source` (n, p), `target` (n, q), float32."""

    source: Tensor
    target: Tensor

    def compute_moments(self) -> Moments:
        """Their sums."""
        sums = Moments.zeros(self.source.shape[1], self.target.shape[1], self.source.device)
        sums.add(self.source, self.target)
        return sums


def fit_input_map(moments: Moments, ridge: float) -> Tensor:
    """M_in (p, q): what the target reads, as the source would have read it. λ in mean eigenvalues."""
    return _solve_ridge(moments.cross, moments.target, ridge)


def fit_output_map(moments: Moments, ridge: float) -> Tensor:
    """M_out (q, p): what the source site writes, as the target site would write it."""
    return _solve_ridge(moments.cross.T, moments.source, ridge)


@dataclass(frozen=True, slots=True)
class R2:
    """Two R² of one prediction on held-out rows. 1 is perfect; either can be negative, and is NaN where there
    is nothing to explain.

    `r2`: over predicting zero, 1 − ‖wanted − got‖² / ‖wanted‖². What all rows share counts as known, and in
    trained models that is most of it: 0.8 between bases that had nothing to tell each other. `centred`: over
    predicting the rows' own mean, the best constant, so that 0 is knowing nothing of what tells rows apart.
    """

    r2: float
    centered: float


def input_r2(delta: LowRank, M_in: Tensor, held_out: PairedRows) -> R2:
    """Does the adapter read the same thing? B A x_s is wanted, B A M_in x_t is got: what it reads counts as
    far as B makes use of it, however the update is factored. With B = Q R, R A gives the same lengths."""
    A, M = torch.linalg.qr(delta.B.double()).R @ delta.A.double(), M_in.double()
    expected = held_out.source.double() @ A.T
    predicted = held_out.target.double() @ (A @ M).T
    return _compute_r2(expected, predicted)


def output_r2(B: Tensor, M_out: Tensor, held_out: PairedRows) -> R2:
    """Does the target write what the source writes, where the adapter does? P y_t is wanted, P M_out y_s is
    got; P the projector on M_out·B (B: (p, r)), which may span less than r directions: an adapter padded with
    zeros writes no others, where QR would make some up."""
    U, S, _ = torch.linalg.svd(M_out.double() @ B.double(), full_matrices=False)
    basis = U[:, S.gt(_MIN_SINGULAR_RATIO * S.amax())]
    expected = held_out.target.double() @ basis
    predicted = held_out.source.double() @ (M_out.double().T @ basis)
    return _compute_r2(expected, predicted)


def apply_maps(delta: LowRank, M_in: Tensor, M_out: Tensor) -> LowRank:
    """A' = A M_in, B' = M_out B: the update on the target, of the same rank."""
    return LowRank((M_out.to(delta.B) @ delta.B), delta.A @ M_in.to(delta.A))


def _solve_ridge(cross: Tensor, gram: Tensor, ridge: float) -> Tensor:
    """cross (gram + λI)⁻¹ with λ = ridge × mean eigenvalue, float64."""
    penalty = ridge * float(gram.diagonal().mean())
    system = gram + penalty * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) != 0:  # λ too small for a rank-deficient sum: the pseudoinverse is its limit
        inverse: Tensor = torch.linalg.pinv(system, hermitian=True)
        return cross @ inverse
    solved: Tensor = torch.cholesky_solve(cross.T, factor).T
    return solved


def _compute_r2(expected: Tensor, predicted: Tensor) -> R2:
    """Rows (n, k) of both."""
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


# Part of what names kept maps: raise it whenever the same sums may give other maps.
MAPS_VERSION = 1
DEFAULT_RIDGE = 0.1  # λ in mean eigenvalues, the default of `activation`


def get_site_map(evidence: SiteEvidence, port: Port, ridge: float) -> tuple[Tensor, PairedRows]:
    """M_in (i_s, i_t) or M_out (o_t, o_s), float32, and rows that it was not fitted to. Kept per pair of
    bases: a further adapter costs two small products a site."""

    def fit() -> dict[str, Tensor]:
        moments, rows = evidence.moments(port), evidence.held_out_rows(port)
        M = fit_input_map(moments, ridge) if port == "in" else fit_output_map(moments, ridge)
        return {"map": M.float(), "source": rows.source, "target": rows.target}

    tensors = evidence.cached_by_hook(port, f"map_{port} v{MAPS_VERSION} ridge {ridge:.9g}", fit)
    return tensors["map"], PairedRows(tensors["source"], tensors["target"])


def fit_metrics(delta: LowRank, evidence: SiteEvidence, ridge: float) -> dict[str, float]:
    """How well this site's maps serve the adapter, on held-out tokens: see `known`."""
    M_in, input_rows = get_site_map(evidence, "in", ridge)
    M_out, output_rows = get_site_map(evidence, "out", ridge)
    return map_metrics(delta, M_in, M_out, input_rows, output_rows)


def map_metrics(
    delta: LowRank, M_in: Tensor, M_out: Tensor, input_rows: PairedRows, output_rows: PairedRows
) -> dict[str, float]:
    """`read_r2` of B·A·M_in and `write_r2` of M_out·B: what share of what the adapter reads does the target
    know, and of what the target writes there does the source tell? `…_centred` count what tells tokens apart
    alone, and are what a verdict may rest on. At most 1; 0 is chance."""
    input_scores, output_scores = input_r2(delta, M_in, input_rows), output_r2(delta.B, M_out, output_rows)
    metrics = {
        "read_r2": input_scores.r2,
        "read_r2_centred": input_scores.centered,
        "write_r2": output_scores.r2,
        "write_r2_centred": output_scores.centered,
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
