"""Builds transformers' model for a config.json and fills it with given tensors, in memory or streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import cpu_offload, init_empty_weights
from torch import Tensor

from rebase.errors import UnsupportedModel
from rebase.lora.tensors import TensorReader
from rebase.models.empty_model import build_model_config
from rebase.models.partial_model import PartialModel
from rebase.models.task_model import CAUSAL_LM, TaskModel


def load_transformers_model(
    config: Mapping[str, Any],
    state: dict[str, Tensor],
    dtype: torch.dtype,
    pointer: str | None = None,
    task_model: TaskModel = CAUSAL_LM,
) -> Any:
    """The model with exactly these tensors; a head that the adapter brings is left at its random start.

    Raises UnsupportedModel if any are missing, because transformers would initialise them randomly.
    """
    transformers_config = task_model.complete_config(build_model_config(config))
    model, loading = task_model.get_class(transformers_config).from_pretrained(
        None,
        config=transformers_config,
        state_dict=state,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    absent = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    missing = sorted(name for name in absent if not task_model.is_own_head(name))
    if missing:
        raise _make_missing_weight_error(missing[0], pointer)
    return model


def load_streamed_model(
    config: Mapping[str, Any], reader: TensorReader, device: torch.device, dtype: torch.dtype
) -> Any:
    """The same model with its weights left on disk: each module's are read just before it runs. Raises
    UnsupportedModel as `load_causal_lm` does."""
    transformers_config = build_model_config(config)
    model_class = CAUSAL_LM.get_class(transformers_config)
    with init_empty_weights():
        model = model_class(transformers_config).to(dtype)
    model.tie_weights()
    state_dict = _LazyStateDict(reader, model, dtype)
    for name, tensor in sorted(model.state_dict().items()):
        if state_dict.get_shape(name) != tuple(tensor.shape):
            raise _make_missing_weight_error(name)
    return cpu_offload(model, execution_device=device, state_dict=state_dict)


def _make_missing_weight_error(name: str, pointer: str | None = None) -> UnsupportedModel:
    owner = f"{pointer.removeprefix('/')}'s " if pointer else ""
    return UnsupportedModel(
        f"The {owner}weights have no '{name}' with the shape that config.json implies.",
        hint="Use a revision of the base whose config.json matches its weights.",
        pointer=pointer,
    )


class _LazyStateDict(Mapping[str, Tensor]):
    """A model's state dict as a mapping that reads each tensor on access."""

    def __init__(self, reader: TensorReader, model: Any, dtype: torch.dtype) -> None:
        self._reader, self._dtype = reader, dtype
        expected = model.state_dict()
        self._names = {
            _find_parameter_name(new, model, expected): name
            for name, new in PartialModel().iter_names(reader)
        }
        tied = model.all_tied_weights_keys if hasattr(model, "all_tied_weights_keys") else {}
        for tied_name, source_name in dict(tied).items():
            if tied_name not in self._names and source_name in self._names:
                self._names[tied_name] = self._names[source_name]

    def get_shape(self, name: str) -> tuple[int, ...] | None:
        """A tensor's shape, without reading it; None if it does not exist."""
        return self._reader.infos()[self._names[name]].shape if name in self._names else None

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.read(self._names[name]).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _find_parameter_name(name: str, model: Any, expected: Mapping[str, Tensor]) -> str:
    """transformers' name for a stored tensor: GPT-2 checkpoints omit the head and the prefix of the other
    modules, and GPT-NeoX checkpoints store the head under another name."""
    candidates = (name, f"{model.base_model_prefix}.{name}", re.sub(r"^embed_out\.", "lm_head.", name))
    return next((candidate for candidate in candidates if candidate in expected), name)
