"""One predictor's weights, with λ and the number of anchors or components chosen by leaving anchors out.

Ridge has a closed form for every λ at once (`predict.leave_one_out`). The other predictors of [003] choose
neighbours, components or a rotation from the anchors themselves, so they are fitted again without each
anchor: N small problems per setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from transfer.catalogue import AnchorRidgeParams
from transfer.interface import Kernels
from transfer.pool import predict

# λ in mean eigenvalues of the kernel, largest first: of two settings that do equally well, the simpler wins.
PENALTIES = tuple(10.0 ** (power / 2) for power in range(6, -9, -1))
COARSE_PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # where every setting is fitted N times


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights c (N,) of one kernel. `errors`: (N,) ‖y_i − ŷ_i‖ of each anchor left out; `mean_errors`: the
    same for the mean of the others; `sizes`: (N,) ‖y_i‖; `curve`: every setting tried, with its relative
    error."""

    weights: Tensor
    errors: Tensor
    mean_errors: Tensor
    sizes: Tensor
    penalty: float
    count: int
    curve: tuple[Mapping[str, float], ...]


def fit(params: AnchorRidgeParams, kernels: Kernels) -> Fit:
    """The weights of the predictor that `params` names, on these kernels."""
    n = kernels.k.numel()
    sizes = kernels.G.diagonal().clamp_min(0.0).sqrt()
    mean_errors = _refit(kernels, predict.mean)
    unit = predict.scale_of(kernels.K, center=params.center) or 1.0
    settings = _settings(params, n)
    if params.predictor == "mean":
        errors = mean_errors[None]
    elif params.predictor in ("global_ridge", "per_tensor_ridge"):
        penalties = torch.tensor([penalty * unit for penalty, _ in settings], dtype=torch.float64)
        errors = predict.leave_one_out(kernels, penalties, center=params.center)
    else:
        tried = [partial(_weigh_at, params, penalty * unit, count) for penalty, count in settings]
        errors = torch.stack([_refit(kernels, one) for one in tried])
    total = float(sizes.square().sum())
    relative = [float((row.square().sum() / total).sqrt()) if total > 0.0 else 0.0 for row in errors]
    best = min(range(len(settings)), key=lambda number: relative[number])
    penalty, count = settings[best]
    curve = tuple(
        {"penalty": p, "count": float(c), "loo_error": error}
        for (p, c), error in zip(settings, relative, strict=True)
    )
    if params.count is None and count == max(c for _, c in settings):
        count = n  # the most that a fold could use is all that the whole pool has
    weights = weigh(params, kernels, penalty * unit, count)
    return Fit(weights, errors[best], mean_errors, sizes, penalty, count, curve)


def weigh(params: AnchorRidgeParams, kernels: Kernels, penalty: float, count: int) -> Tensor:
    """Weights (N,) of the named predictor at one setting; λ is absolute."""
    match params.predictor:
        case "mean":
            return predict.mean(kernels)
        case "topk_ridge":
            return predict.topk(kernels, count, penalty, center=params.center)
        case "per_tensor_pca":
            return predict.pca(kernels, count, penalty, center=params.center)
        case "procrustes":
            return predict.procrustes(kernels, center=params.center)
        case _:
            return predict.ridge(kernels, penalty, center=params.center)


def _weigh_at(params: AnchorRidgeParams, penalty: float, count: int, kernels: Kernels) -> Tensor:
    return weigh(params, kernels, penalty, count)


def leverage(params: AnchorRidgeParams, kernels: Kernels, penalty: float) -> Tensor:
    """h_ii (N,): how far each anchor's own prediction hangs on itself. Ridge's, whatever the predictor."""
    K = predict.centred(kernels.K) if params.center else kernels.K
    unit = predict.scale_of(kernels.K, center=params.center) or 1.0
    values, vectors = torch.linalg.eigh(K)
    values = values.clamp_min(0.0)
    inside = (vectors.square() * (values / (values + penalty * unit))).sum(1)
    whole: Tensor = inside + (1.0 / K.shape[0] if params.center else 0.0)
    return whole.clamp(0.0, 1.0)


def span_share(kernels: Kernels, *, center: bool) -> float:
    """Share of ‖x‖² (centred: ‖x − x̄‖²) of the adapter that lies in the span of the anchors, in [0, 1]."""
    own, k, K = kernels.own, kernels.k, kernels.K
    if center:
        own = own - 2 * float(k.mean()) + float(K.mean())
        K, k = predict.centred(kernels.K), predict.centred_row(kernels)
    values, vectors = predict.leading(K, K.shape[0])
    if own <= 0.0 or not values.numel():
        return 0.0
    return min(1.0, float(((vectors.T @ k).square() / values).sum()) / own)


def cosine_to_mean(sites: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Cosine between the whole prediction and the mean of the anchors, from (weights (N,), G (N, N)) of every
    site; None when either is zero."""
    across = ours = means = 0.0
    for weights, G in sites:
        mean = torch.full_like(weights, 1.0 / weights.numel())
        across += float(weights @ G @ mean)
        ours += float(weights @ G @ weights)
        means += float(mean @ G @ mean)
    return across / (ours**0.5 * means**0.5) if ours > 0.0 and means > 0.0 else None


def _settings(params: AnchorRidgeParams, n: int) -> Sequence[tuple[float, int]]:
    """Every (λ, count) to try."""
    if params.predictor in ("mean", "procrustes"):
        return [(0.0, n)]
    closed = params.predictor in ("global_ridge", "per_tensor_ridge")
    grid = PENALTIES if closed else COARSE_PENALTIES
    penalties = grid if params.penalty is None else (params.penalty,)
    if closed:
        return [(penalty, n) for penalty in penalties]
    # A fold has n − 1 anchors, and n − 2 components once they are centred.
    most = max(1, n - 1 if params.predictor == "topk_ridge" else n - 1 - params.center)
    counts = {2**power for power in range(9) if 2**power < most} | {most}
    wanted = sorted(counts) if params.count is None else [min(params.count, n)]
    return [(penalty, count) for count in wanted for penalty in penalties]


def _refit(kernels: Kernels, predictor: Callable[[Kernels], Tensor]) -> Tensor:
    """‖y_i − ŷ_i‖ of every anchor (N,), predicted from the others alone."""
    missed = []
    for i in range(kernels.k.numel()):
        weights = predictor(predict.held_out(kernels, i))
        whole = torch.cat([-weights[:i], weights.new_ones(1), -weights[i:]])  # y_i − Σ c_j y_j
        missed.append((whole @ kernels.G @ whole).clamp_min(0.0).sqrt())
    return torch.stack(missed)
