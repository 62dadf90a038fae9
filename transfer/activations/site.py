"""What paired activations say at one site: its maps, and how well they serve one adapter."""

from __future__ import annotations

import math

from torch import Tensor

from transfer.activations.maps import PairedRows, fit_input_map, fit_output_map, input_r2, output_r2
from transfer.interface import LowRank, Port, SiteEvidence

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
