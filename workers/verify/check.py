"""All checks of one result, in order of cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from rebase.errors import VerificationFailed
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.low_rank import LowRank, Site
from rebase.report.schema import Verification
from transfer.adapter.write import BuiltAdapter
from transfer.linalg import frobenius
from workers.verify.forward import check_forward
from workers.verify.structure import check_structure

# A move that multiplies an update this often has gone wrong; the methods' own scalings stay far below.
MAX_GROWTH = 100.0
# Unless it is still small beside the weight: an update that is found on the target owes its size to that.
LARGE = 0.1
# Training is measured on text it never saw and keeps its best step, so it may go further.
LARGE_TRAINED = 0.5


def verify(
    opened: LoadedInputs,
    built: BuiltAdapter,
    folder: Path,
    deltas: Mapping[Site, LowRank],
    device: torch.device,
    *,
    trained: bool = False,
) -> Verification:
    """Norms, structure under PEFT, a forward pass. Raises VerificationFailed; then nothing is published."""
    check_norms(opened, deltas, LARGE_TRAINED if trained else LARGE)
    shapes = {name: tuple(tensor.shape) for name, tensor in built.tensors.items()}
    tensors = check_structure(opened.target.config, folder, shapes)
    forward = check_forward(
        opened.target.config, opened.target_reader, folder, changed_layers(deltas), device
    )
    return Verification(
        tensors=tensors,
        forward_scope=forward.scope,
        logit_change=forward.logit_change,
        mean_kl=forward.mean_kl,
    )


def changed_layers(deltas: Mapping[Site, LowRank]) -> list[int]:
    """The layers whose update is not zero; all adapted ones when there is none."""
    changed = {site.layer for site, delta in deltas.items() if delta.B.any() and delta.A.any()}
    return sorted(changed or {site.layer for site in deltas})


def _size(opened: LoadedInputs, site: Site) -> float:
    """‖W‖_F of the target's own weight."""
    return float(torch.linalg.vector_norm(opened.target.weight(site)))


def check_norms(opened: LoadedInputs, deltas: Mapping[Site, LowRank], large: float = LARGE) -> None:
    """Every update is finite, is not a silent no-op where the source had one, and has not exploded: is not
    many times as long as the source's, unless it is less than `large` beside the target's own weight."""
    for pair in opened.pairing.pairs:
        before = frobenius(opened.adapter.delta(pair.source)) * pair.scale
        after = frobenius(deltas[pair.target])
        if not math.isfinite(after):
            raise VerificationFailed(f"The update at site {pair.target} is not finite.")
        if before > 0.0 and after == 0.0:
            raise VerificationFailed(
                f"The update at site {pair.target} vanished: the method kept nothing of site {pair.source}.",
                hint="Try another method; see /diagnostics for what each site kept.",
            )
        if 0.0 < MAX_GROWTH * before < after and after > large * _size(opened, pair.target):
            raise VerificationFailed(
                f"The update at site {pair.target} grew from {before:.3g} to {after:.3g} in norm.",
                hint="Try another method or alignment.",
            )
