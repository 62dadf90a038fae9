"""transformers' own model of a config.json, filled with tensors that were read elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import cpu_offload, init_empty_weights
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from transfer.errors import UnsupportedModel
from transfer.weights import TensorReader
from workers.verify.cut import Cut
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


def streamed_causal_lm(
    config: Mapping[str, Any], reader: TensorReader, device: torch.device, dtype: torch.dtype
) -> Any:
    """The same model with its weights left in their files: a module's are read before it runs."""
    settings = model_config(config)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
    with init_empty_weights():
        model = model_class(settings).to(dtype)
    model.tie_weights()
    return cpu_offload(model, execution_device=device, state_dict=_Stored(reader, model, dtype))


class _Stored(Mapping[str, Tensor]):
    """A model's state as a mapping that reads each tensor when it is asked for."""

    def __init__(self, reader: TensorReader, model: Any, dtype: torch.dtype) -> None:
        self._reader, self._dtype = reader, dtype
        self._names = {new: name for name, new in Cut().names(reader)}
        tied = model.all_tied_weights_keys if hasattr(model, "all_tied_weights_keys") else {}
        for own, shared in dict(tied).items():
            if own not in self._names and shared in self._names:
                self._names[own] = self._names[shared]

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.read(self._names[name]).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
