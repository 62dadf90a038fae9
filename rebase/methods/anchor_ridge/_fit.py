"""Fits a predictor's weights, choosing λ and the number of anchors or components by leave-one-out.

Ridge has a closed form for every λ at once (`_regression.compute_loo_errors`). The other predictors of [003]
derive neighbours, components or a rotation from the anchors themselves, so they are refitted without each
anchor: N small problems per setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rebase.methods.anchor_ridge import _regression as predict
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base import Kernels

# λ in units of the kernel's mean eigenvalue, largest first, so that ties go to the simpler setting.
PENALTIES = tuple(10.0 ** (power / 2) for power in range(6, -9, -1))
COARSE_PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # for predictors that are fitted N times per setting


@dataclass(frozen=True, slots=True)
class PredictorFit:
    """Weights c (N,) for one kernel. `errors`: (N,) leave-one-out ‖y_i − ŷ_i‖; `mean_errors`: the same for
    the mean of the other anchors; `norms`: (N,) ‖y_i‖; `curve`: each setting tried, with its relative error.
    """

    weights: Tensor
    errors: Tensor
    mean_errors: Tensor
    norms: Tensor
    penalty: float
    count: int
    curve: tuple[Mapping[str, float], ...]


def fit_predictor(params: AnchorRidgeParams, kernels: Kernels) -> PredictorFit:
    """Fit the predictor that `params` names on these kernels."""
    n = kernels.k.numel()
    norms = kernels.G.diagonal().clamp_min(0.0).sqrt()
    mean_errors = _compute_refit_errors(kernels, predict.solve_mean)
    unit = predict.compute_scale(kernels.K, center=params.center) or 1.0
    settings = _list_settings(params, n)
    if params.predictor == "mean":
        errors = mean_errors[None]
    elif params.predictor in ("global_ridge", "per_tensor_ridge"):
        penalties = torch.tensor([penalty * unit for penalty, _ in settings], dtype=torch.float64)
        errors = predict.compute_loo_errors(kernels, penalties, center=params.center)
    else:
        solvers = [partial(_solve_weights_at, params, penalty * unit, count) for penalty, count in settings]
        errors = torch.stack([_compute_refit_errors(kernels, solver) for solver in solvers])
    total = float(norms.square().sum())
    relative_errors = [float((row.square().sum() / total).sqrt()) if total > 0.0 else 0.0 for row in errors]
    best = min(range(len(settings)), key=lambda number: relative_errors[number])
    penalty, count = settings[best]
    curve = tuple(
        {"penalty": p, "count": float(c), "loo_error": error}
        for (p, c), error in zip(settings, relative_errors, strict=True)
    )
    if params.count is None and count == max(c for _, c in settings):
        count = n  # the best count was the largest possible in a fold, so use the whole pool
    weights = solve_weights(params, kernels, penalty * unit, count)
    return PredictorFit(weights, errors[best], mean_errors, norms, penalty, count, curve)


def solve_weights(params: AnchorRidgeParams, kernels: Kernels, penalty: float, count: int) -> Tensor:
    """Weights (N,) of the predictor at one setting; λ is absolute."""
    match params.predictor:
        case "mean":
            return predict.solve_mean(kernels)
        case "topk_ridge":
            return predict.solve_topk(kernels, count, penalty, center=params.center)
        case "per_tensor_pca":
            return predict.solve_pca(kernels, count, penalty, center=params.center)
        case "procrustes":
            return predict.solve_procrustes(kernels, center=params.center)
        case _:
            return predict.solve_ridge(kernels, penalty, center=params.center)


def _solve_weights_at(params: AnchorRidgeParams, penalty: float, count: int, kernels: Kernels) -> Tensor:
    return solve_weights(params, kernels, penalty, count)


def compute_leverage(params: AnchorRidgeParams, kernels: Kernels, penalty: float) -> Tensor:
    """h_ii (N,): how strongly each anchor's prediction depends on itself. Always computed for ridge."""
    K = predict.center_kernel(kernels.K) if params.center else kernels.K
    unit = predict.compute_scale(kernels.K, center=params.center) or 1.0
    values, vectors = torch.linalg.eigh(K)
    values = values.clamp_min(0.0)
    hat_diagonal = (vectors.square() * (values / (values + penalty * unit))).sum(1)
    leverages: Tensor = hat_diagonal + (1.0 / K.shape[0] if params.center else 0.0)
    return leverages.clamp(0.0, 1.0)


def compute_span_share(kernels: Kernels, *, center: bool) -> float:
    """Share of the adapter's ‖x‖² (centred: ‖x − x̄‖²) that lies in the span of the anchors, in [0, 1]."""
    self_inner, k, K = kernels.self_inner, kernels.k, kernels.K
    if center:
        self_inner = self_inner - 2 * float(k.mean()) + float(K.mean())
        K, k = predict.center_kernel(kernels.K), predict.center_row(kernels)
    values, vectors = predict.leading_eigenpairs(K, K.shape[0])
    if self_inner <= 0.0 or not values.numel():
        return 0.0
    return min(1.0, float(((vectors.T @ k).square() / values).sum()) / self_inner)


def compute_cosine_to_mean(sites: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Cosine between the prediction and the mean of the anchors over all sites, given (weights (N,),
    G (N, N)) per site; None if either is zero."""
    cross = prediction_square = mean_square = 0.0
    for weights, G in sites:
        mean_weights = torch.full_like(weights, 1.0 / weights.numel())
        cross += float(weights @ G @ mean_weights)
        prediction_square += float(weights @ G @ weights)
        mean_square += float(mean_weights @ G @ mean_weights)
    return (
        cross / (prediction_square**0.5 * mean_square**0.5)
        if prediction_square > 0.0 and mean_square > 0.0
        else None
    )


def _list_settings(params: AnchorRidgeParams, n: int) -> Sequence[tuple[float, int]]:
    """Every (λ, count) to try."""
    if params.predictor in ("mean", "procrustes"):
        return [(0.0, n)]
    has_closed_form = params.predictor in ("global_ridge", "per_tensor_ridge")
    grid = PENALTIES if has_closed_form else COARSE_PENALTIES
    penalties = grid if params.penalty is None else (params.penalty,)
    if has_closed_form:
        return [(penalty, n) for penalty in penalties]
    # A fold has n − 1 anchors, and n − 2 components once they are centred.
    max_count = max(1, n - 1 if params.predictor == "topk_ridge" else n - 1 - params.center)
    counts = {2**power for power in range(9) if 2**power < max_count} | {max_count}
    tried_counts = sorted(counts) if params.count is None else [min(params.count, n)]
    return [(penalty, count) for count in tried_counts for penalty in penalties]


def _compute_refit_errors(kernels: Kernels, predictor: Callable[[Kernels], Tensor]) -> Tensor:
    """‖y_i − ŷ_i‖ (N,) with each anchor predicted from the others alone."""
    errors = []
    for i in range(kernels.k.numel()):
        weights = predictor(predict.hold_out(kernels, i))
        residual_weights = torch.cat([-weights[:i], weights.new_ones(1), -weights[i:]])  # y_i − Σ c_j y_j
        errors.append((residual_weights @ kernels.G @ residual_weights).clamp_min(0.0).sqrt())
    return torch.stack(errors)
