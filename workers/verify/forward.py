"""A forward pass of the target with and without the converted adapter, on the real weights.

Small targets run whole. Larger ones run as a slice (up to two adapted layers and the first thousand
tokens of the vocabulary, all real weights), so that the check's memory depends on the width of the model
and not on its depth. Which of the two was done is part of the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from transfer.errors import UnsupportedModel, VerificationFailed
from transfer.weights import TensorReader
from workers.verify.structure import adapter_config, model_config

_LAYER = re.compile(r"(^|\.)(layers|h)\.(\d+)\.")
_TEXT_PREFIX = re.compile(r"(^|\.)(?:language_model\.model|model\.language_model)\.")
_NOT_TEXT = re.compile(r"(vision_tower|vision_model|multi_modal_projector|visual)\.")
_VOCABULARY = re.compile(r"(embed_tokens|wte|embed_in|embed_out|lm_head)\.(weight|bias)$")
_SLICE_LAYERS = 2
_SLICE_VOCABULARY = 1024
_PROBE_TOKENS = 32
WHOLE_MODEL_BYTES = 2**30  # float32 weights up to this size run whole


@dataclass(frozen=True, slots=True)
class ForwardCheck:
    """What the pass saw. `logit_change` is ‖with − without‖ / ‖without‖ over the probe's logits."""

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

    Raises VerificationFailed when logits are not finite or the adapter changes nothing, UnsupportedModel when
    the target is not complete.
    """
    text = dict(raw.get("text_config") or raw)
    if runs_whole(reader, whole_model_bytes):
        kept: tuple[int, ...] | None = None
        scope = "whole model"
    else:
        kept = tuple(sorted(layers)[:_SLICE_LAYERS])
        scope = f"real weights of layers {', '.join(map(str, kept))}, vocabulary cut to {_SLICE_VOCABULARY}"
    config = _cut(text, kept)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config(config))]
    state = dict(_weights(reader, kept, int(text["vocab_size"])))
    model, loading = model_class.from_pretrained(
        None,
        config=model_config(config),
        state_dict=state,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    del state
    _check_complete(loading)
    model = model.to(device).eval()
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device).remainder(int(config["vocab_size"]))[None]
    with torch.inference_mode():
        without = model(ids, use_cache=False).logits.float()
    wrapped = get_peft_model(model, _config_for_slice(folder))
    loaded: Any = set_peft_model_state_dict(wrapped, dict(_adapter_tensors(folder, kept)))
    if loaded.unexpected_keys:
        raise VerificationFailed(
            f"The target ignores adapter tensors, such as '{loaded.unexpected_keys[0]}'."
        )
    with torch.inference_mode():
        with_adapter = wrapped(ids, use_cache=False).logits.float()
    return _compare(scope, without, with_adapter)


def runs_whole(reader: TensorReader, whole_model_bytes: int = WHOLE_MODEL_BYTES) -> bool:
    """Is the model small enough to run whole in float32?"""
    return sum(4 * math.prod(info.shape) for info in reader.infos().values()) <= whole_model_bytes


def _check_complete(loading: Mapping[str, Any]) -> None:
    """Transformers fills what it does not find with random numbers, and a pass on those proves nothing."""
    lacking = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if lacking:
        raise UnsupportedModel(
            f"The target's weights lack '{lacking[0]}' in the shape that its config.json implies.",
            hint="Name a revision of the base whose config.json suits its weights.",
            pointer="/target",
        )


def _compare(scope: str, without: Tensor, with_adapter: Tensor) -> ForwardCheck:
    if not (torch.isfinite(without).all() and torch.isfinite(with_adapter).all()):
        raise VerificationFailed("A forward pass of the target gives values that are not finite.")
    change = float((with_adapter - without).norm() / without.norm().clamp_min(1e-30))
    if change == 0.0:
        raise VerificationFailed("The converted adapter changes nothing in a forward pass of the target.")
    base, moved = without.log_softmax(-1), with_adapter.log_softmax(-1)
    kl = float((base.exp() * (base - moved)).sum(-1).mean())
    return ForwardCheck(scope, change, max(kl, 0.0))


def _cut(config: dict[str, Any], kept: tuple[int, ...] | None) -> dict[str, Any]:
    """The config of a model that holds only the layers `kept` and a cut vocabulary."""
    if kept is None:
        return config
    key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
    depth = int(config[key])
    cut: dict[str, Any] = {
        name: [value[index] for index in kept] if isinstance(value, list) and len(value) == depth else value
        for name, value in config.items()
    }
    cut[key] = len(kept)
    cut["vocab_size"] = min(int(config["vocab_size"]), _SLICE_VOCABULARY)
    # Special tokens may lie outside the cut vocabulary, and nothing here needs them.
    cut.update(pad_token_id=None, bos_token_id=None, eos_token_id=None)
    return cut


def _renamed(name: str, kept: tuple[int, ...] | None) -> str | None:
    """The name inside the (cut) text model, or None when the tensor is not part of it."""
    name = _TEXT_PREFIX.sub(r"\1model.", name)
    match = _LAYER.search(name)
    if kept is None or match is None:
        return name
    layer = int(match.group(3))
    if layer not in kept:
        return None
    return f"{name[: match.start(3)]}{kept.index(layer)}{name[match.end(3) :]}"


def _weights(
    reader: TensorReader, kept: tuple[int, ...] | None, vocabulary: int
) -> Iterator[tuple[str, Tensor]]:
    for name, info in sorted(reader.infos().items()):
        new = _renamed(name, kept)
        if new is None or _NOT_TEXT.search(name):
            continue
        cut = kept is not None and _VOCABULARY.search(name) and info.shape[0] == vocabulary
        if cut and len(info.shape) == 2:
            yield new, reader.read_rows(name, 0, min(vocabulary, _SLICE_VOCABULARY)).float()
        elif cut:
            yield new, reader.read(name)[:_SLICE_VOCABULARY].float()
        else:
            yield new, reader.read(name).float()


def _adapter_tensors(folder: Path, kept: tuple[int, ...] | None) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        new = _renamed(name, kept)
        if new is not None:
            yield new, tensor.float()


def _config_for_slice(folder: Path) -> LoraConfig:
    config = adapter_config(folder)
    # Layers were renumbered, and every layer of the slice is an adapted one.
    config.layers_to_transform = None
    config.layers_pattern = None
    return config
