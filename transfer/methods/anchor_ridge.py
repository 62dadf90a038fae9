"""Anchor-space prediction [003]: the update as a combination of the pool's target updates, Θ̂ = Σ c_i ΔW_i^Y.

The weights c come from how the adapter relates to the pool's source adapters, in the dual: only N×N inner
products are used (`transfer.pool.predict`). One set of weights serves all sites, except for the
`per_tensor_…` predictors, which have one per site. Nothing of the adapter itself reaches the result but
through c, so what no anchor knows cannot come over; `span_share` says how much that leaves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from transfer.catalogue import AnchorRidgeParams
from transfer.errors import IncompatiblePair
from transfer.interface import (
    Anchors,
    AnchorWeight,
    Carried,
    Evidence,
    Kernels,
    LowRank,
    Pair,
    Prepared,
    Site,
    SiteEvidence,
    SitePair,
)
from transfer.linalg import frobenius, truncate
from transfer.methods.refusals import require_sites
from transfer.pool.fit import Fit, cosine_to_mean, fit, leverage, span_share
from transfer.pool.kernel import combine

FEWEST = 2


@dataclass(frozen=True, slots=True)
class Prediction(Prepared):
    """Weights (N,) and fit per target site; a global predictor has the same one at every site."""

    fits: Mapping[Site, Fit] | None = None


class AnchorRidge:
    """Six predictors over one pool; the result is cut to the adapter's rank."""

    name: ClassVar[str] = "anchor_ridge"

    def needs(self, params: AnchorRidgeParams) -> frozenset[Evidence]:
        """The pool."""
        return frozenset({Evidence.ANCHORS})

    def prepare(self, params: AnchorRidgeParams, pair: Pair) -> Prediction:
        """The weights. Raises IncompatiblePair without a pool of two anchors that fits these sites."""
        require_sites(pair)
        pool = pair.anchors
        if pool is None:
            raise IncompatiblePair(
                "No anchor pool for these two bases was given or registered.",
                hint="Register one: POST /anchor-pools, `rebase pools add`; or give one to transfer --pool.",
                pointer="/method/pool",
            )
        if len(pool.domains) < FEWEST:
            raise IncompatiblePair(
                f"The pool has {len(pool.domains)} usable anchor(s); {FEWEST} are needed.",
                pointer="/method/pool",
            )
        kernels = {site: pool.kernels(site, params.space) for site in pair.sites}
        whole = _whole(kernels)
        _require_finite(whole)
        if params.predictor.startswith("per_tensor"):
            fits = {site.target: fit(params, found) for site, found in kernels.items()}
        else:
            fits = dict.fromkeys((site.target for site in kernels), fit(params, whole))
        return _told(params, pool, kernels, whole, fits)

    def carry(
        self,
        params: AnchorRidgeParams,
        state: Prediction,
        site: SitePair,
        delta: LowRank,
        evidence: SiteEvidence,
    ) -> Carried:
        """ΔW (o_t, i_t), of `rank` or the adapter's own; what cutting lost is measured."""
        found = (state.fits or {})[site.target]
        whole = combine(evidence.anchors(), found.weights, params.space)
        moved, lost = truncate(whole, min(params.rank or delta.rank, *whole.shape))
        measured = {
            "update_norm": frobenius(moved),
            "lost_energy": lost,
            "loo_error": _relative(found.errors, found.sizes),
            "loo_error_mean": _relative(found.mean_errors, found.sizes),
        }
        if (before := frobenius(delta) / site.scale) > 0.0:  # the adapter's own, before layers share it
            measured["norm_ratio"] = measured["update_norm"] / before
        if params.predictor.startswith("per_tensor"):
            measured |= {"penalty": found.penalty, "count": float(found.count)}
        return Carried(moved, measured)


def _require_finite(whole: Kernels) -> None:
    if not all(bool(part.isfinite().all()) for part in (whole.K, whole.k, whole.G)):
        raise IncompatiblePair(
            "Some updates of the pool or of the adapter are too large to compare.", pointer="/method/pool"
        )


def _whole(kernels: Mapping[SitePair, Kernels]) -> Kernels:
    """Inner products of whole adapters. Target layers may share a source layer, which then counts once."""
    targets = sorted(kernels, key=lambda site: site.target)
    of_source = {site.source: kernels[site] for site in targets}
    order = sorted(of_source)
    return Kernels(
        torch.stack([of_source[site].K for site in order]).sum(0),
        torch.stack([of_source[site].k for site in order]).sum(0),
        torch.stack([kernels[site].G for site in targets]).sum(0),
        math.fsum(of_source[site].own for site in order),
    )


def _told(
    params: AnchorRidgeParams,
    pool: Anchors,
    kernels: Mapping[SitePair, Kernels],
    whole: Kernels,
    fits: Mapping[Site, Fit],
) -> Prediction:
    """The prediction with what it says about itself, summed over sites where each has its own weights."""
    sites = [fits[site] for site in sorted(fits)]
    if not params.predictor.startswith("per_tensor"):
        sites = sites[:1]
    errors = torch.stack([found.errors for found in sites]).square().sum(0).sqrt()
    means = torch.stack([found.mean_errors for found in sites]).square().sum(0).sqrt()
    sizes = torch.stack([found.sizes for found in sites]).square().sum(0).sqrt()
    weights = torch.stack([found.weights for found in sites]).mean(0)
    measured = {
        "anchors": float(weights.numel()),
        "domains": float(len(set(pool.domains))),
        "domain_entropy": _entropy(pool.domains),
        "loo_error": _relative(errors, sizes),
        "loo_error_mean": _relative(means, sizes),
        "span_share": span_share(whole, center=False),
        "span_share_centred": span_share(whole, center=True),
    }
    G = {site.target: found.G for site, found in kernels.items()}
    if (cosine := cosine_to_mean([(fits[site].weights, G[site]) for site in sorted(fits)])) is not None:
        measured["cosine_to_mean"] = cosine
    if len(sites) == 1:
        measured |= {"penalty": sites[0].penalty, "count": float(sites[0].count)}
    own = [(kernels[site], fits[site.target]) for site in sorted(kernels, key=lambda site: site.target)]
    if len(sites) == 1:
        own = [(whole, sites[0])]
    held = torch.stack([leverage(params, found, one.penalty or 1e-3) for found, one in own]).mean(0)
    rows = tuple(
        AnchorWeight(float(c), float(h), float(e / s) if s > 0.0 else 0.0)
        for c, h, e, s in zip(weights, held, errors, sizes, strict=True)
    )
    return Prediction(measured, rows, sites[0].curve if len(sites) == 1 else (), fits)


def _relative(errors: Tensor, sizes: Tensor) -> float:
    """√(Σ e² / Σ ‖y‖²): 1 is what predicting zero would give."""
    total = float(sizes.square().sum())
    return math.sqrt(float(errors.square().sum()) / total) if total > 0.0 else 0.0


def _entropy(labels: Sequence[str]) -> float:
    """−Σ p ln p of the domain labels, in nats: 0 for a pool of one domain."""
    shares = [count / len(labels) for count in Counter(labels).values()]
    return max(0.0, -math.fsum(share * math.log(share) for share in shares))
