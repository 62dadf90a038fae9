"""A cut-down copy of a large target for verification: some of its layers and vocabulary rows, unchanged.

Layers and tokens are renumbered, both in the target's tensors and in the adapter's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor

from rebase.lora.tensors import TensorReader
from rebase.models.empty_model import load_adapter_config

_LAYER = re.compile(r"(^|\.)(layers|h)\.(\d+)\.")
_TEXT_PREFIX = re.compile(r"(^|\.)(?:language_model\.model|model\.language_model)\.")
_NOT_TEXT = re.compile(
    r"(vision_tower|vision_model|multi_modal_projector|visual|audio_tower|embed_vision|embed_audio)\."
)
_VOCABULARY = re.compile(r"(embed_tokens|wte|embed_in|embed_out|lm_head)\.(weight|bias)$")
_EMBEDDING_LORA = re.compile(r"(embed_tokens|wte|embed_in)\.lora_embedding_A$")
_HEAD_LORA = re.compile(r"(embed_out|lm_head)\.lora_B\.weight$")
_TOKENS = re.compile(r"(?P<module>[^.]+)\.token_adapter\.trainable_tokens_delta$")
VOCABULARY_ROWS = 1024
_MAX_RETRAINED_ROWS = 128  # maximum retrained rows per table to include, wherever they are in the vocabulary


@dataclass(frozen=True, slots=True)
class PartialModel:
    """Which part to keep. `layers`: ascending, or None for the whole model. The cut vocabulary is the first
    `first` rows plus `extra`, which are ascending ids above those. `vocabulary`: the full number of rows.
    `is_outer`: the model that contains the text model runs, because the text model has no class of its own.
    """

    layers: tuple[int, ...] | None = None
    vocab_size: int = 0
    first_rows: int = 0
    extra_rows: tuple[int, ...] = ()
    is_outer: bool = False

    @classmethod
    def for_adapter(
        cls, layers: tuple[int, ...], vocab_size: int, folder: Path, *, is_outer: bool = False
    ) -> PartialModel:
        """`VOCABULARY_ROWS` tokens: the first ones, and those retrained by the adapter in `folder`."""
        retrained = _get_token_indices(load_adapter_config(folder))
        retrained_ids = sorted({id_ for ids in retrained.values() for id_ in ids[:_MAX_RETRAINED_ROWS]})
        extra_rows = tuple(id_ for id_ in retrained_ids if VOCABULARY_ROWS <= id_ < vocab_size)
        first_rows = min(vocab_size, VOCABULARY_ROWS) - len(extra_rows)
        return cls(layers, vocab_size, first_rows, extra_rows, is_outer)

    def build_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config.json of this part."""
        if self.layers is None:
            return config
        if self.is_outer:
            inner = replace(self, is_outer=False)
            return {**config, "text_config": inner.build_config(dict(config["text_config"]))}
        key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
        depth = int(config[key])
        part: dict[str, Any] = {
            name: [value[index] for index in self.layers]
            if isinstance(value, list) and len(value) == depth
            else value
            for name, value in config.items()
        }
        part[key] = len(self.layers)
        part["vocab_size"] = self.first_rows + len(self.extra_rows)
        # Special tokens may be outside the cut vocabulary, and nothing here needs them.
        part.update(pad_token_id=None, bos_token_id=None, eos_token_id=None)
        return part

    def iter_names(self, reader: TensorReader) -> Iterator[tuple[str, str]]:
        """(name in the repo, name in this part) of each tensor."""
        for name in sorted(reader.infos()):
            new_name = self._rename(name)
            if new_name is not None and (self.is_outer or not _NOT_TEXT.search(name)):
                yield name, new_name

    def iter_weights(self, reader: TensorReader) -> Iterator[tuple[str, Tensor]]:
        """The target's tensors in this part, in float32."""
        infos = reader.infos()
        for name, new_name in self.iter_names(reader):
            info = infos[name]
            is_cut = self.layers is not None and _VOCABULARY.search(name) and info.shape[0] == self.vocab_size
            if is_cut and len(info.shape) == 2:
                rows = [reader.read_rows(name, 0, self.first_rows)]
                rows += [reader.read_rows(name, row, row + 1) for row in self.extra_rows]
                yield new_name, torch.cat(rows).float()
            elif is_cut:
                yield new_name, reader.read(name)[[*range(self.first_rows), *self.extra_rows]].float()
            else:
                yield new_name, reader.read(name).float()

    def iter_adapter_tensors(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """The adapter's tensors in this part, in float32; only the needed rows of whole tables are read."""
        indices = _get_token_indices(load_adapter_config(folder))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                new_name = self._rename(name)
                if new_name is None or (_NOT_TEXT.search(name) and not self.is_outer):
                    continue
                if self.layers is not None and (_VOCABULARY.search(name) or _HEAD_LORA.search(name)):
                    table = file.get_slice(name)
                    rows = [table[: self.first_rows], *(table[row : row + 1] for row in self.extra_rows)]
                    yield new_name, torch.cat(rows).float()
                    continue
                tensor = file.get_tensor(name).float()
                if self.layers is not None and _EMBEDDING_LORA.search(name):
                    tensor = tensor[:, [*range(self.first_rows), *self.extra_rows]]
                if self.layers is not None and (match := _TOKENS.search(name)):
                    tensor = tensor[[self.map_token_id(id_) is not None for id_ in indices[match["module"]]]]
                    if not tensor.numel():
                        continue
                yield new_name, tensor

    def build_adapter_config(self, folder: Path) -> LoraConfig:
        """The written adapter_config.json, adjusted to this part."""
        config = load_adapter_config(folder)
        # Layers are renumbered, and every layer in the part is adapted.
        config.layers_to_transform = None
        config.layers_pattern = None
        if isinstance(config.target_modules, list | set):  # full names inside a larger model
            config.target_modules = [
                new_name
                for name in config.target_modules
                if (new_name := self._rename(name)) and (self.is_outer or not _NOT_TEXT.search(f"{name}."))
            ]
        if config.modules_to_save is not None:  # full names of norms and other whole modules
            config.modules_to_save = [
                new_name for name in config.modules_to_save if (new_name := self._rename_module(name))
            ]
        config.trainable_token_indices = self.find_retrained_tokens(folder) or None
        return config

    def find_retrained_tokens(self, folder: Path) -> dict[str, list[int]]:
        """Module → ids in this part of the tokens that the adapter has retrained."""
        token_ids = {
            module: [new_id for id_ in ids if (new_id := self.map_token_id(id_)) is not None]
            for module, ids in _get_token_indices(load_adapter_config(folder)).items()
        }
        return {module: new_ids for module, new_ids in token_ids.items() if new_ids}

    def map_token_id(self, id_: int) -> int | None:
        """A token's id in this part; None if it was cut."""
        if self.layers is None or id_ < self.first_rows:
            return id_
        return self.first_rows + self.extra_rows.index(id_) if id_ in self.extra_rows else None

    def _rename_module(self, name: str) -> str | None:
        """A module's name in this part, or None if its layer was cut."""
        new_name = self._rename(f"{name}.")
        return None if new_name is None else new_name.removesuffix(".")

    def _rename(self, name: str) -> str | None:
        """The name inside the (cut) text model, or None when the tensor is not part of it."""
        if self.is_outer and _NOT_TEXT.search(name):
            return name
        name = name if self.is_outer else _TEXT_PREFIX.sub(r"\1model.", name)
        match = _LAYER.search(name)
        if self.layers is None or match is None:
            return name
        layer = int(match.group(3))
        if layer not in self.layers:
            return None
        return f"{name[: match.start(3)]}{self.layers.index(layer)}{name[match.end(3) :]}"


def _get_token_indices(config: LoraConfig) -> Mapping[str, list[int]]:
    """The config's retrained tokens by module; our adapters always store them as a mapping."""
    indices = config.trainable_token_indices
    return indices if isinstance(indices, dict) else {}
