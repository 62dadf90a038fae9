"""transformers' own model of a config.json, filled with tensors that were read elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from transfer.errors import UnsupportedModel
from workers.verify.structure import model_config


def load_causal_lm(
    config: Mapping[str, Any], state: dict[str, Tensor], dtype: torch.dtype, pointer: str | None = None
) -> Any:
    """The causal language model with exactly these tensors.

    Raises UnsupportedModel when some lack: transformers fills what it does not find with random numbers.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config(config))]
    model, loading = model_class.from_pretrained(
        None,
        config=model_config(config),
        state_dict=state,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    lacking = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if lacking:
        whose = f"{pointer.removeprefix('/')}'s " if pointer else ""
        raise UnsupportedModel(
            f"The {whose}weights lack '{lacking[0]}' in the shape that its config.json implies.",
            hint="Name a revision of the base whose config.json suits its weights.",
            pointer=pointer,
        )
    return model
