"""Builds models without weights, to check by shape that PEFT accepts a written adapter on the target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from billiard.exceptions import SoftTimeLimitExceeded
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.utils import logging as hf_logging

from rebase.errors import UnsupportedModel, VerificationFailed
from rebase.models.task_model import CAUSAL_LM, TaskModel

# An untrusted config.json must not select code: an attention implementation may name a repo to load a kernel
# from. We also set the dtype and the output format ourselves.
_RUNTIME_KEYS = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "experts_implementation",
        "_experts_implementation",
        "auto_map",
        "dtype",
        "torch_dtype",
        "quantization_config",
        "return_dict",
        "use_return_dict",
        "_name_or_path",  # PEFT copies this name and fails if it is not a string
    }
)

# Progress bars would clutter the worker's log.
hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def build_model_config(raw: Mapping[str, Any]) -> PretrainedConfig:
    """A transformers config from a repo's config.json, using only classes that ship with transformers.

    Raises UnsupportedModel for an unknown model type.
    """
    model_type = str(raw.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"The installed transformers version does not support the architecture '{model_type}'.",
            hint="Upgrade transformers on the worker, or use a base with a supported architecture.",
        )
    config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(_drop_runtime_keys(raw))
    return config


def _drop_runtime_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys in `_HOW_TO_RUN`, at any depth."""
    return {
        key: _drop_runtime_keys(value) if isinstance(value, Mapping) else value
        for key, value in raw.items()
        if key not in _RUNTIME_KEYS
    }


def build_empty_model(raw: Mapping[str, Any], task_model: TaskModel = CAUSAL_LM) -> Any:
    """The model on the meta device, without weights. UnsupportedModel if transformers cannot build it."""
    try:
        config = task_model.complete_config(build_model_config(raw))
        with torch.device("meta"):
            return task_model.get_class(config)._from_config(config)
    except (UnsupportedModel, SoftTimeLimitExceeded):
        raise
    except Exception as exc:  # each config and model class fails in its own way
        raise UnsupportedModel(
            "The installed transformers version cannot build this model from its config.json: "
            f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}",
            hint="Use a revision of the base whose config.json matches its weights.",
        ) from exc


def load_adapter_config(folder: Path) -> LoraConfig:
    """The written adapter_config.json, read by PEFT itself."""
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise VerificationFailed("PEFT does not recognize the written adapter as a LoRA adapter.")
    # PEFT warns if the model's name differs, and a model built from a config has no name.
    config.base_model_name_or_path = None
    return config


def check_structure(
    raw: Mapping[str, Any],
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    task_model: TaskModel = CAUSAL_LM,
) -> int:
    """Check that PEFT on the target expects exactly the tensors in the file.

    `shapes`: the file's tensors. The target is built without weights, so its size does not matter. Returns
    the number of matching tensors. Raises VerificationFailed naming the mismatches.
    """
    try:
        model = build_empty_model(raw, task_model)
        wrapped = get_peft_model(model, load_adapter_config(folder), low_cpu_mem_usage=True)
    except ValueError as exc:
        raise VerificationFailed(f"PEFT cannot load the converted adapter on the target: {exc}") from exc
    # Copies of the base's token tables, which PEFT saves beside LoRA on them, are not part of the adapter.
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    unexpected = sorted(set(shapes) - set(expected))
    missing = sorted(set(expected) - set(shapes))
    if unexpected or missing:
        raise VerificationFailed(
            f"The target would ignore {len(unexpected)} of the adapter's tensors {unexpected[:3]} and lack "
            f"{len(missing)} that it expects {missing[:3]}."
        )
    mismatched = sorted(name for name, shape in shapes.items() if expected[name] != shape)
    if mismatched:
        name = mismatched[0]
        raise VerificationFailed(f"'{name}' has shape {shapes[name]} but the target needs {expected[name]}.")
    return len(expected)
