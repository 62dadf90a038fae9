"""Verifies a converted adapter: update norms, structure under PEFT, and a forward pass of the target.

The forward pass runs with and without the adapter, on the real weights. Small targets run whole. Larger ones
run as a slice (up to two adapted layers and the first thousand tokens of the vocabulary), so that memory
depends on the model's width and not on its depth. The result says which of the two was done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, set_peft_model_state_dict
from torch import Tensor

from rebase.errors import VerificationFailed
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.tensors import TensorReader
from rebase.lora.writer import BuiltAdapter
from rebase.models.empty_model import check_structure, model_config
from rebase.models.loading import load_causal_lm
from rebase.models.partial_model import VOCABULARY_ROWS, Cut
from rebase.report.schema import Verification

_SLICE_LAYERS = 2
_PROBE_TOKENS = 32
_PROBE_RETRAINED = 8
WHOLE_MODEL_BYTES = 2**30  # float32 weights up to this size run whole


@dataclass(frozen=True, slots=True)
class ForwardCheck:
    """Result of the forward pass. `logit_change`: ‖with − without‖ / ‖without‖ over the probe's logits."""

    scope: str
    logit_change: float
    mean_kl: float


def check_forward(
    raw: Mapping[str, Any],
    reader: TensorReader,
    folder: Path,
    layers: Sequence[int],
    device: torch.device,
    whole_model_bytes: int = WHOLE_MODEL_BYTES,
) -> ForwardCheck:
    """Run the target with and without the adapter in `folder`, which adapts `layers`.

    Raises VerificationFailed if logits are not finite or the adapter changes nothing, UnsupportedModel if the
    target is incomplete.
    """
    text = dict(raw.get("text_config") or raw)
    vocabulary = int(model_config(text).vocab_size)  # config.json may omit defaults
    if runs_whole(reader, whole_model_bytes):
        cut, scope = Cut(), "whole model"
    else:
        kept = tuple(sorted(layers)[:_SLICE_LAYERS])
        cut = Cut.of(kept, vocabulary, folder)
        scope = f"real weights of layers {', '.join(map(str, kept))}, vocabulary cut to {VOCABULARY_ROWS}"
    config = cut.config(text)
    model = load_causal_lm(config, dict(cut.weights(reader)), torch.float32, "/target").to(device).eval()
    ids = _probe(int(config.get("vocab_size", vocabulary)), cut.retrained(folder)).to(device)
    with torch.inference_mode():
        without = model(ids, use_cache=False).logits.float()
    wrapped = get_peft_model(model, cut.adapter_config(folder))
    loaded: Any = set_peft_model_state_dict(wrapped, dict(cut.adapter_tensors(folder)))
    if loaded.unexpected_keys:
        raise VerificationFailed(
            f"The target ignores adapter tensors, such as '{loaded.unexpected_keys[0]}'."
        )
    with torch.inference_mode():
        with_adapter = wrapped(ids, use_cache=False).logits.float()
    return _compare(scope, without, with_adapter)


def _probe(vocabulary: int, retrained: Mapping[str, Sequence[int]]) -> Tensor:
    """(1, 32) token ids: the first ones, then up to eight whose rows the adapter trained."""
    ids = torch.arange(1, _PROBE_TOKENS + 1).remainder(vocabulary)
    own = sorted({id_ for some in retrained.values() for id_ in some})[:_PROBE_RETRAINED]
    if own:
        ids[-len(own) :] = torch.tensor(own)
    return ids[None]


def runs_whole(reader: TensorReader, whole_model_bytes: int = WHOLE_MODEL_BYTES) -> bool:
    """Is the model small enough to run whole in float32?"""
    return sum(4 * math.prod(info.shape) for info in reader.infos().values()) <= whole_model_bytes


def _compare(scope: str, without: Tensor, with_adapter: Tensor) -> ForwardCheck:
    if not (torch.isfinite(without).all() and torch.isfinite(with_adapter).all()):
        raise VerificationFailed("A forward pass of the target gives values that are not finite.")
    change = float((with_adapter - without).norm() / without.norm().clamp_min(1e-30))
    if change == 0.0:
        raise VerificationFailed("The converted adapter changes nothing in a forward pass of the target.")
    base, moved = without.log_softmax(-1), with_adapter.log_softmax(-1)
    kl = float((base.exp() * (base - moved)).sum(-1).mean())
    return ForwardCheck(scope, change, max(kl, 0.0))


# A transfer that multiplies an update's norm by more than this has failed; the methods' scalings stay far
# below.
MAX_GROWTH = 100.0
# Unless the update is small relative to the target's weight: one fitted on the target scales with that.
LARGE = 0.1
# Trained updates are validated on held-out text and keep their best step, so they may be larger.
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
    """Check norms, structure under PEFT, and a forward pass. Raises VerificationFailed."""
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
    """The layers with a nonzero update; all adapted layers if there are none."""
    changed = {site.layer for site, delta in deltas.items() if delta.B.any() and delta.A.any()}
    return sorted(changed or {site.layer for site in deltas})


def _size(opened: LoadedInputs, site: Site) -> float:
    """‖W‖_F of the target's own weight."""
    return float(torch.linalg.vector_norm(opened.target.weight(site)))


def check_norms(opened: LoadedInputs, deltas: Mapping[Site, LowRank], large: float = LARGE) -> None:
    """Check that every update is finite, is not zero where the source's is not, and has not exploded: its
    norm is at most MAX_GROWTH times the source's, or at most `large` times the target's weight norm."""
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
