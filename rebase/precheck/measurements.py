"""Measurements behind the verdict. All values are finite and named as in docs/methods.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank
from rebase.lora.source_adapter import SourceAdapter
from rebase.methods.activation_maps import DEFAULT_RIDGE, fit_metrics
from rebase.methods.base import Method, SiteEvidence, SitePair, SiteResult
from rebase.methods.base_params import MethodParams
from rebase.methods.site_pairing import Pairing
from rebase.models.vocabulary import SharedTokens

Probes = Callable[[SitePair], SiteEvidence]


def select_probe_pairs(pairs: Sequence[SitePair]) -> tuple[SitePair, ...]:
    """All paired sites in the first, middle and last target layer that have any."""
    layers = sorted({pair.target.layer for pair in pairs})
    chosen = {layers[0], layers[len(layers) // 2], layers[-1]} if layers else set()
    return tuple(pair for pair in pairs if pair.target.layer in chosen)


def measure_structure(
    adapter: SourceAdapter, pairing: Pairing, shared_tokens: SharedTokens | None
) -> dict[str, float]:
    """Measurements from configs and tokenizers alone: coverage, shapes, overlaps."""
    pairs = pairing.pairs
    equal = sum(pair.source_shape == pair.target_shape for pair in pairs)
    measured = {
        "sites": float(len(pairs)),
        "sites_covered": 1.0 - len(pairing.dropped) / max(len(adapter.sites), 1),
        "shapes_equal": equal / len(pairs) if pairs else 0.0,
    }
    if shared_tokens is not None:
        measured |= {
            "shared_tokens": float(shared_tokens.source_ids.numel()),
            "overlap_source": shared_tokens.overlap_source,
            "overlap_target": shared_tokens.overlap_target,
            "jaccard": shared_tokens.jaccard,
        }
    return measured


def measure_weights(adapter: SourceAdapter, pairs: Sequence[SitePair], probes: Probes) -> dict[str, float]:
    """Distance between the bases [002] and size of the update at the probe sites.

    `distance_paper` = ‖W_s − W_t‖_F / numel, as printed, depends on the size of W; `relative_distance` =
    ‖W_s − W_t‖_F / ‖W_s‖_F does not: 0 for equal weights, √2 for unrelated ones. Equal shapes only.
    `update_ratio` = ‖ΔW_s‖_F / ‖W_s‖_F.
    """
    relative: list[float] = []
    paper: list[float] = []
    ratio: list[float] = []
    for pair in pairs:
        evidence = probes(pair)
        source = evidence.weight("source")
        weight_norm = float(torch.linalg.vector_norm(source))
        if weight_norm == 0.0:
            continue
        ratio.append(frobenius(adapter.delta(pair.source)) / weight_norm)
        if pair.source_shape == pair.target_shape:
            distance = float(torch.linalg.vector_norm(source - evidence.weight("target")))
            relative.append(distance / weight_norm)
            paper.append(distance / source.numel())
    return {
        **_summarize("relative_distance", relative),
        **_summarize("distance_paper", paper),
        **_summarize("update_ratio", ratio),
    }


def measure_probes(
    method: Method[MethodParams],
    params: MethodParams,
    state: Any,
    adapter: SourceAdapter,
    pairs: Sequence[SitePair],
    probes: Probes,
    device: torch.device,
) -> dict[str, float]:
    """Means of the method's measurements over the probe sites; `flag_…` is the share of flagged sites."""
    results: list[SiteResult] = []
    for pair in pairs:
        delta = adapter.delta(pair.source)
        on_device = LowRank(delta.B.to(device), delta.A.to(device))
        results.append(method.transfer_site(params, state, pair, on_device, probes(pair)))
    measured = _average_by_name([result.measurements for result in results])
    for flag in sorted({flag for result in results for flag in result.flags}):
        measured[f"flag_{flag}"] = sum(flag in result.flags for result in results) / len(results)
    return measured


def measure_activations(
    adapter: SourceAdapter, pairs: Sequence[SitePair], probes: Probes, device: torch.device
) -> dict[str, float]:
    """Mean input and output R² over the probe sites, independent of the method."""
    rows = []
    for pair in pairs:
        delta = adapter.delta(pair.source)
        on_device = LowRank(delta.B.to(device), delta.A.to(device))
        rows.append(fit_metrics(on_device, probes(pair), DEFAULT_RIDGE))
    return _average_by_name(rows)


def _average_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for row in rows for name in row})
    return {name: _compute_mean(row[name] for row in rows if name in row) for name in names}


def _compute_mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def _summarize(name: str, values: list[float]) -> dict[str, float]:
    return {name: _compute_mean(values), f"{name}_max": max(values)} if values else {}
