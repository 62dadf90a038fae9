"""Anchor-space prediction [003]: the update as a combination of the pool's target updates, Θ̂ = Σ c_i ΔW_i^Y.

The weights c come from a regression on the pool's source adapters in dual form: only N×N inner products are
used (`_regression`). All sites share one set of weights, except with the `per_tensor_…` predictors, which fit
one per site. The adapter influences the result only through c, so whatever lies outside the span of the
anchors cannot be transferred; `span_share` measures the share inside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rebase.errors import IncompatiblePair
from rebase.lora.linalg import frobenius, truncate
from rebase.lora.low_rank import LowRank, Site
from rebase.methods._common import require_sites
from rebase.methods.anchor_ridge._fit import (
    PredictorFit,
    compute_cosine_to_mean,
    compute_leverage,
    compute_span_share,
    fit_predictor,
)
from rebase.methods.anchor_ridge.params import AnchorRidgeParams
from rebase.methods.base import (
    AnchorPool,
    AnchorWeight,
    BasePairInfo,
    Evidence,
    Kernels,
    Method,
    MethodState,
    SiteEvidence,
    SitePair,
    SiteResult,
)
from rebase.methods.findings import Finding, Weight
from rebase.methods.pool_kernel import combine_updates

MIN_ANCHORS = 2
# Limits on the relative leave-one-out error: predicting zero gives 1; below the second limit the prediction
# is more right than wrong.
MAX_POOL_ERROR = 1.0
HALF_POOL_ERROR = 0.7
# [003]: on three of five tasks the ridge prediction was the pool's mean.
MEAN_COSINE = 0.99
HALF_SPAN = 0.5
FEW_TASKS = 8


@dataclass(frozen=True, slots=True)
class Prediction(MethodState):
    """The fit per target site; a global predictor has the same fit at every site."""

    fits: Mapping[Site, PredictorFit] | None = None


class AnchorRidge(Method[AnchorRidgeParams]):
    """Six predictors over one pool; the result is truncated to the adapter's rank."""

    name: ClassVar[str] = "anchor_ridge"

    def needs(self, params: AnchorRidgeParams) -> frozenset[Evidence]:
        """The anchors' updates."""
        return frozenset({Evidence.ANCHORS})

    def prepare(self, params: AnchorRidgeParams, pair: BasePairInfo) -> Prediction:
        """Fit the weights. Raises IncompatiblePair without a pool of at least two anchors for these sites."""
        require_sites(pair)
        pool = pair.anchor_pool
        if pool is None:
            raise IncompatiblePair(
                "There is no anchor pool for these two bases: none is registered and the request gives none.",
                hint=(
                    "Register one with POST /anchor-pools or `rebase pools add`, or pass one with `rebase "
                    "transfer --pool`."
                ),
                pointer="/method/pool",
            )
        if len(pool.domains) < MIN_ANCHORS:
            raise IncompatiblePair(
                f"The pool has {len(pool.domains)} usable anchor(s); {MIN_ANCHORS} are needed.",
                pointer="/method/pool",
            )
        kernels = {site: pool.kernels(site, params.space) for site in pair.sites}
        total = _sum_kernels(kernels)
        _require_finite(total)
        if params.predictor.startswith("per_tensor"):
            fits = {
                site.target: fit_predictor(params, site_kernels) for site, site_kernels in kernels.items()
            }
        else:
            fits = dict.fromkeys((site.target for site in kernels), fit_predictor(params, total))
        return _build_prediction(params, pool, kernels, total, fits)

    def default_candidates(
        self, *, has_pool: bool, allow_text: bool, allow_training: bool
    ) -> tuple[AnchorRidgeParams, ...]:
        """The defaults, if there is a pool."""
        return (AnchorRidgeParams(),) if has_pool else ()

    def folds_layers(self, params: AnchorRidgeParams) -> bool:
        """Never: a pool predicts the target layer's own update."""
        return False

    def findings(self, params: AnchorRidgeParams, measured: Mapping[str, float]) -> Iterator[Finding]:
        """The pool's leave-one-out error, its span, and its size and diversity."""
        if "loo_error" not in measured:
            return  # `prepare` refused and gave the reason
        count, error, mean = (measured[name] for name in ("anchors", "loo_error", "loo_error_mean"))
        text = (
            f"Predicting each of the pool's {count:.0f} tasks from the others has an error of {error:.0%} "
            f"of the task's norm (predicting their mean: {mean:.0%})."
        )
        weight: Weight = (
            "blocking" if error >= MAX_POOL_ERROR else "doubt" if error > HALF_POOL_ERROR else "info"
        )
        yield Finding("pool_error", text, weight)
        share = measured["span_share"]
        text = f"The pool's source adapters span {share:.1%} of this update; the rest cannot be predicted."
        yield Finding("outside_pool", text, "doubt" if share < HALF_SPAN else "info")
        if params.predictor != "mean" and measured.get("cosine_to_mean", 0.0) > MEAN_COSINE:
            text = "The prediction is the pool's mean and would be the same for any adapter."
            yield Finding("pool_mean", text, "doubt")
        if measured["domain_entropy"] == 0.0:
            text = (
                "The pool covers a single domain; outside it, predictions can be worse than no adapter [003]."
            )
            yield Finding("narrow_pool", text, "doubt")
        if count < FEW_TASKS:
            yield Finding("small_pool", f"A pool of only {count:.0f} tasks is weak evidence.", "doubt")

    def unusable_reason(self, state: Prediction) -> str | None:
        """Rejects a pool whose leave-one-out error is no better than predicting zero."""
        error = state.measurements["loo_error"]
        if error < MAX_POOL_ERROR:
            return None
        return f"The anchor pool was not used: its leave-one-out error is {error:.0%} of the tasks' norm."

    def transfer_site(
        self,
        params: AnchorRidgeParams,
        state: Prediction,
        site: SitePair,
        delta: LowRank,
        evidence: SiteEvidence,
    ) -> SiteResult:
        """ΔW (o_t, i_t), truncated to `rank` or the adapter's rank; the truncation loss is measured."""
        site_fit = (state.fits or {})[site.target]
        combined = combine_updates(evidence.anchor_updates(), site_fit.weights, params.space)
        result, lost_energy = truncate(combined, min(params.rank or delta.rank, *combined.shape))
        measured = {
            "update_norm": frobenius(result),
            "lost_energy": lost_energy,
            "loo_error": _compute_relative_error(site_fit.errors, site_fit.norms),
            "loo_error_mean": _compute_relative_error(site_fit.mean_errors, site_fit.norms),
        }
        if (norm_before := frobenius(delta) / site.scale) > 0.0:  # before layer scaling
            measured["norm_ratio"] = measured["update_norm"] / norm_before
        if params.predictor.startswith("per_tensor"):
            measured |= {"penalty": site_fit.penalty, "count": float(site_fit.count)}
        return SiteResult(result, measured)


def _require_finite(kernels: Kernels) -> None:
    if not all(bool(part.isfinite().all()) for part in (kernels.K, kernels.k, kernels.G)):
        raise IncompatiblePair(
            "Some updates of the pool or the adapter are too large to compare.", pointer="/method/pool"
        )


def _sum_kernels(kernels: Mapping[SitePair, Kernels]) -> Kernels:
    """Inner products of whole adapters. A source layer shared by several target layers counts once."""
    ordered_pairs = sorted(kernels, key=lambda site: site.target)
    by_source = {site.source: kernels[site] for site in ordered_pairs}
    order = sorted(by_source)
    return Kernels(
        torch.stack([by_source[site].K for site in order]).sum(0),
        torch.stack([by_source[site].k for site in order]).sum(0),
        torch.stack([kernels[site].G for site in ordered_pairs]).sum(0),
        math.fsum(by_source[site].self_inner for site in order),
    )


def _build_prediction(
    params: AnchorRidgeParams,
    pool: AnchorPool,
    kernels: Mapping[SitePair, Kernels],
    total: Kernels,
    fits: Mapping[Site, PredictorFit],
) -> Prediction:
    """The prediction with its measurements, summed over sites if each site has its own weights."""
    site_fits = [fits[site] for site in sorted(fits)]
    if not params.predictor.startswith("per_tensor"):
        site_fits = site_fits[:1]
    errors = torch.stack([site_fit.errors for site_fit in site_fits]).square().sum(0).sqrt()
    mean_errors = torch.stack([found.mean_errors for found in site_fits]).square().sum(0).sqrt()
    norms = torch.stack([found.norms for found in site_fits]).square().sum(0).sqrt()
    weights = torch.stack([found.weights for found in site_fits]).mean(0)
    measured = {
        "anchors": float(weights.numel()),
        "domains": float(len(set(pool.domains))),
        "domain_entropy": _compute_entropy(pool.domains),
        "loo_error": _compute_relative_error(errors, norms),
        "loo_error_mean": _compute_relative_error(mean_errors, norms),
        "span_share": compute_span_share(total, center=False),
        "span_share_centred": compute_span_share(total, center=True),
    }
    G = {site.target: found.G for site, found in kernels.items()}
    if (
        cosine := compute_cosine_to_mean([(fits[site].weights, G[site]) for site in sorted(fits)])
    ) is not None:
        measured["cosine_to_mean"] = cosine
    if len(site_fits) == 1:
        measured |= {"penalty": site_fits[0].penalty, "count": float(site_fits[0].count)}
    kernel_fits = [
        (kernels[site], fits[site.target]) for site in sorted(kernels, key=lambda site: site.target)
    ]
    if len(site_fits) == 1:
        kernel_fits = [(total, site_fits[0])]
    leverages = torch.stack(
        [compute_leverage(params, found, kernel_fit.penalty or 1e-3) for found, kernel_fit in kernel_fits]
    ).mean(0)
    anchor_weights = tuple(
        AnchorWeight(float(c), float(h), float(e / s) if s > 0.0 else 0.0)
        for c, h, e, s in zip(weights, leverages, errors, norms, strict=True)
    )
    return Prediction(measured, anchor_weights, site_fits[0].curve if len(site_fits) == 1 else (), fits)


def _compute_relative_error(errors: Tensor, norms: Tensor) -> float:
    """√(Σ e² / Σ ‖y‖²): predicting zero gives 1."""
    total = float(norms.square().sum())
    return math.sqrt(float(errors.square().sum()) / total) if total > 0.0 else 0.0


def _compute_entropy(labels: Sequence[str]) -> float:
    """−Σ p ln p of the domain labels, in nats: 0 for a pool with one domain."""
    shares = [count / len(labels) for count in Counter(labels).values()]
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))
