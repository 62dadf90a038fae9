"""What paired activations say at one site: its maps, and how well they serve one adapter."""

from __future__ import annotations

import math

from torch import Tensor

from transfer.activations.maps import PairedRows, map_in, map_out, reads, writes
from transfer.interface import LowRank, Port, SiteEvidence

# Part of what names kept maps: raise it whenever the same sums may give other maps.
MAPS_VERSION = 1
USUAL_RIDGE = 0.1  # λ in mean eigenvalues, the default of `activation`


def site_map(evidence: SiteEvidence, port: Port, ridge: float) -> tuple[Tensor, PairedRows]:
    """M_in (i_s, i_t) or M_out (o_t, o_s), float32, and rows that it was not fitted to. Kept per pair of
    bases: a further adapter costs two small products a site."""

    def fit() -> dict[str, Tensor]:
        moments, rows = evidence.moments(port), evidence.held_out(port)
        M = map_in(moments, ridge) if port == "in" else map_out(moments, ridge)
        return {"map": M.float(), "source": rows.source, "target": rows.target}

    found = evidence.kept_at(port, f"map_{port} v{MAPS_VERSION} ridge {ridge:.9g}", fit)
    return found["map"], PairedRows(found["source"], found["target"])


def seen_by(delta: LowRank, evidence: SiteEvidence, ridge: float) -> dict[str, float]:
    """How well this site's maps serve the adapter, on held-out tokens: see `known`."""
    M_in, read = site_map(evidence, "in", ridge)
    M_out, written = site_map(evidence, "out", ridge)
    return known(delta, M_in, M_out, read, written)


def known(
    delta: LowRank, M_in: Tensor, M_out: Tensor, read: PairedRows, written: PairedRows
) -> dict[str, float]:
    """`read_r2` of B·A·M_in and `write_r2` of M_out·B: what share of what the adapter reads does the target
    know, and of what the target writes there does the source tell? `…_centred` count what tells tokens apart
    alone, and are what a verdict may rest on. At most 1; 0 is chance."""
    ours, theirs = reads(delta, M_in, read), writes(delta.B, M_out, written)
    found = {
        "read_r2": ours.r2,
        "read_r2_centred": ours.centred,
        "write_r2": theirs.r2,
        "write_r2_centred": theirs.centred,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
