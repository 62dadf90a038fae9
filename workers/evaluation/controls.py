"""What a moved adapter has to beat: noise of its own size, and its numbers copied without a thought."""

from __future__ import annotations

import torch

from rebase.evidence.inputs import LoadedInputs
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.copy.method import Copy
from rebase.methods.copy.params import CopyParams
from rebase.methods.site_pairing import pair_sites
from transfer.linalg import frobenius
from workers.evaluation.scoring import Deltas
from workers.fold import folded


def make_random_control(deltas: Deltas, seed: int) -> dict[Site, LowRank]:
    """Gaussian factors with each site's norm ‖BA‖_F and rank. Drawn on the CPU in the order of the sites, so
    that one seed gives one control."""
    generator = torch.Generator().manual_seed(seed)
    control = {}
    for site, delta in sorted(deltas.items()):
        (o, i), rank = delta.shape, delta.rank
        random_factors = LowRank(
            torch.randn(o, rank, generator=generator), torch.randn(rank, i, generator=generator)
        )
        norm = frobenius(random_factors)
        control[site] = random_factors.scaled(frobenius(delta) / norm if norm > 0.0 else 0.0)
    return control


def make_padded_control(inputs: LoadedInputs) -> dict[Site, LowRank]:
    """The source's update taken over number by number: the layer at the same relative depth, shapes cropped
    or filled with zeros. Between equal shapes this is the method `copy`."""
    pairs = pair_sites(inputs.source, inputs.target, inputs.adapter.sites, layer_scale=False).pairs
    parts: dict[Site, list[LowRank]] = {}
    copy, params = Copy(), CopyParams(pad=True)
    for pair in pairs:
        delta = inputs.adapter.delta(pair.source)
        # It reads no evidence, so there is none to give.
        result = copy.transfer_site(params, None, pair, delta, None)  # type: ignore[arg-type]
        parts.setdefault(pair.target, []).append(result.delta)
    return folded(parts, [])[0]
