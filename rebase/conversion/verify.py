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

from rebase.errors import MalformedAdapter, VerificationFailed
from rebase.evidence.inputs import LoadedInputs
from rebase.lora.linalg import frobenius
from rebase.lora.low_rank import LowRank, Site
from rebase.lora.tensors import TensorReader
from rebase.lora.writer import BuiltAdapter
from rebase.models.empty_model import build_model_config, check_structure
from rebase.models.loading import load_transformers_model
from rebase.models.partial_model import VOCABULARY_ROWS, PartialModel
from rebase.models.task_model import CAUSAL_LM, TaskModel, choose_runnable_config
from rebase.report.schema import Verification

_MAX_PARTIAL_LAYERS = 2
_PROBE_TOKENS = 32
_MAX_PROBE_RETRAINED = 8
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
    task_model: TaskModel = CAUSAL_LM,
) -> ForwardCheck:
    """Run the target with and without the adapter in `folder`, which adapts `layers`.

    Raises VerificationFailed if logits are not finite or the adapter changes nothing, UnsupportedModel if the
    target is incomplete.
    """
    text_config, is_outer = choose_runnable_config(raw)
    # config.json may omit defaults
    vocab_size = int(build_model_config(text_config).get_text_config().vocab_size)
    if can_run_whole(reader, whole_model_bytes):
        partial_model, scope = PartialModel(is_outer=is_outer), "whole model"
    else:
        kept_layers = tuple(sorted(layers)[:_MAX_PARTIAL_LAYERS])
        partial_model = PartialModel.for_adapter(kept_layers, vocab_size, folder, is_outer=is_outer)
        scope = (
            f"real weights of layers {', '.join(map(str, kept_layers))}, vocabulary cut to {VOCABULARY_ROWS}"
        )
    config = partial_model.build_config(text_config)
    weights = dict(partial_model.iter_weights(reader))
    model = load_transformers_model(config, weights, torch.float32, "/target", task_model).to(device).eval()
    rows = int((config["text_config"] if is_outer else config).get("vocab_size", vocab_size))
    ids = _build_probe_ids(rows, partial_model.find_retrained_tokens(folder)).to(device)
    with torch.inference_mode():
        base_logits = task_model.get_output(model(ids, use_cache=False))
    wrapped = get_peft_model(model, partial_model.build_adapter_config(folder))
    load_result: Any = set_peft_model_state_dict(wrapped, dict(partial_model.iter_adapter_tensors(folder)))
    if load_result.unexpected_keys:
        raise VerificationFailed(
            f"The target ignores adapter tensors, such as '{load_result.unexpected_keys[0]}'."
        )
    with torch.inference_mode():
        adapter_logits = task_model.get_output(wrapped(input_ids=ids, use_cache=False))
    return _compare_logits(scope, base_logits, adapter_logits)


def _build_probe_ids(vocab_size: int, retrained: Mapping[str, Sequence[int]]) -> Tensor:
    """(1, 32) token ids: the first ones, then up to eight whose rows the adapter trained."""
    ids = torch.arange(1, _PROBE_TOKENS + 1).remainder(vocab_size)
    retrained_ids = sorted({id_ for token_ids in retrained.values() for id_ in token_ids})[
        :_MAX_PROBE_RETRAINED
    ]
    if retrained_ids:
        ids[-len(retrained_ids) :] = torch.tensor(retrained_ids)
    return ids[None]


def can_run_whole(reader: TensorReader, whole_model_bytes: int = WHOLE_MODEL_BYTES) -> bool:
    """Is the model small enough to run whole in float32?"""
    return sum(4 * math.prod(info.shape) for info in reader.infos().values()) <= whole_model_bytes


def _compare_logits(scope: str, base_logits: Tensor, adapter_logits: Tensor) -> ForwardCheck:
    if not (torch.isfinite(base_logits).all() and torch.isfinite(adapter_logits).all()):
        raise VerificationFailed("A forward pass of the target produces values that are not finite.")
    change = float((adapter_logits - base_logits).norm() / base_logits.norm().clamp_min(1e-30))
    if change == 0.0:
        raise VerificationFailed("The converted adapter changes nothing in a forward pass of the target.")
    base_logprobs, adapter_logprobs = base_logits.log_softmax(-1), adapter_logits.log_softmax(-1)
    kl = float((base_logprobs.exp() * (base_logprobs - adapter_logprobs)).sum(-1).mean())
    return ForwardCheck(scope, change, max(kl, 0.0))


# A transfer that multiplies an update's norm by more than this has failed; the methods' scalings stay far
# below.
MAX_GROWTH = 100.0
# Unless the update is small relative to the target's weight: one fitted on the target scales with that.
MAX_RELATIVE_NORM = 0.1
# Trained updates are validated on held-out text and keep their best step, so they may be larger.
MAX_RELATIVE_NORM_TRAINED = 0.5


def verify(
    inputs: LoadedInputs,
    built: BuiltAdapter,
    folder: Path,
    deltas: Mapping[Site, LowRank],
    device: torch.device,
    *,
    trained: bool = False,
) -> Verification:
    """Check norms, structure under PEFT, and a forward pass. Raises VerificationFailed."""
    check_norms(inputs, deltas, MAX_RELATIVE_NORM_TRAINED if trained else MAX_RELATIVE_NORM)
    if not (inputs.adapter.contents.has_extra_parts or any(map(frobenius, deltas.values()))):
        raise MalformedAdapter(
            "The adapter's update is zero at every module, as it is before training: it changes nothing.",
            hint="Check that the checkpoint was saved after training.",
            pointer="/adapter",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in built.tensors.items()}
    task_model = TaskModel.for_adapter(built.config, shapes, is_headless=inputs.adapter.is_headless)
    tensors = check_structure(inputs.target.config, folder, shapes, task_model)
    forward = check_forward(
        inputs.target.config,
        inputs.target_reader,
        folder,
        find_changed_layers(deltas),
        device,
        task_model=task_model,
    )
    return Verification(
        tensors=tensors,
        forward_scope=forward.scope,
        logit_change=forward.logit_change,
        mean_kl=forward.mean_kl,
    )


def find_changed_layers(deltas: Mapping[Site, LowRank]) -> list[int]:
    """The layers with a nonzero update; all adapted layers if there are none."""
    changed = {site.layer for site, delta in deltas.items() if delta.B.any() and delta.A.any()}
    return sorted(changed or {site.layer for site in deltas})


def _compute_weight_norm(inputs: LoadedInputs, site: Site) -> float:
    """‖W‖_F of the target's own weight."""
    return float(torch.linalg.vector_norm(inputs.target.weight(site)))


def check_norms(
    inputs: LoadedInputs, deltas: Mapping[Site, LowRank], max_relative_norm: float = MAX_RELATIVE_NORM
) -> None:
    """Check that every update is finite, is not zero where the source's is not, and has not exploded: its
    norm is at most MAX_GROWTH times the source's, or at most `large` times the target's weight norm."""
    for pair in inputs.pairing.pairs:
        norm_before = frobenius(inputs.adapter.delta(pair.source)) * pair.scale
        norm_after = frobenius(deltas[pair.target])
        if not math.isfinite(norm_after):
            raise VerificationFailed(f"The update at site {pair.target} is not finite.")
        if norm_before > 0.0 and norm_after == 0.0:
            raise VerificationFailed(
                f"The update at site {pair.target} is zero: the method kept nothing of site {pair.source}.",
                hint="Try another method; /diagnostics shows how much each site kept.",
            )
        if (
            0.0 < MAX_GROWTH * norm_before < norm_after
            and norm_after > max_relative_norm * _compute_weight_norm(inputs, pair.target)
        ):
            raise VerificationFailed(
                f"The update at site {pair.target} grew from {norm_before:.3g} to {norm_after:.3g} in norm.",
                hint="Try another method or alignment.",
            )
