"""A cut-down copy of a large target for verification: some of its layers and vocabulary rows, unchanged.

Layers and tokens are renumbered, both in the target's tensors and in the adapter's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor

from rebase.lora.tensors import TensorReader
from rebase.models.empty_model import adapter_config

_LAYER = re.compile(r"(^|\.)(layers|h)\.(\d+)\.")
_TEXT_PREFIX = re.compile(r"(^|\.)(?:language_model\.model|model\.language_model)\.")
_NOT_TEXT = re.compile(r"(vision_tower|vision_model|multi_modal_projector|visual)\.")
_VOCABULARY = re.compile(r"(embed_tokens|wte|embed_in|embed_out|lm_head)\.(weight|bias)$")
_TOKENS = re.compile(r"(?P<module>[^.]+)\.token_adapter\.trainable_tokens_delta$")
VOCABULARY_ROWS = 1024
_RETRAINED_ROWS = 128  # maximum retrained rows per table to include, wherever they are in the vocabulary


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part to keep. `layers`: ascending, or None for the whole model. The cut vocabulary is the first
    `first` rows plus `extra`, which are ascending ids above those. `vocabulary`: the full number of rows.
    """

    layers: tuple[int, ...] | None = None
    vocabulary: int = 0
    first: int = 0
    extra: tuple[int, ...] = ()

    @classmethod
    def of(cls, layers: tuple[int, ...], vocabulary: int, folder: Path) -> Cut:
        """`VOCABULARY_ROWS` tokens: the first ones, and those retrained by the adapter in `folder`."""
        retrained = _indices(adapter_config(folder))
        wanted = sorted({id_ for ids in retrained.values() for id_ in ids[:_RETRAINED_ROWS]})
        extra = tuple(id_ for id_ in wanted if VOCABULARY_ROWS <= id_ < vocabulary)
        return cls(layers, vocabulary, min(vocabulary, VOCABULARY_ROWS) - len(extra), extra)

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config.json of this part."""
        if self.layers is None:
            return config
        key = "num_hidden_layers" if "num_hidden_layers" in config else "n_layer"
        depth = int(config[key])
        part: dict[str, Any] = {
            name: [value[index] for index in self.layers]
            if isinstance(value, list) and len(value) == depth
            else value
            for name, value in config.items()
        }
        part[key] = len(self.layers)
        part["vocab_size"] = self.first + len(self.extra)
        # Special tokens may be outside the cut vocabulary, and nothing here needs them.
        part.update(pad_token_id=None, bos_token_id=None, eos_token_id=None)
        return part

    def names(self, reader: TensorReader) -> Iterator[tuple[str, str]]:
        """(name in the repo, name in this part) of each tensor."""
        for name in sorted(reader.infos()):
            new = self._renamed(name)
            if new is not None and not _NOT_TEXT.search(name):
                yield name, new

    def weights(self, reader: TensorReader) -> Iterator[tuple[str, Tensor]]:
        """The target's tensors in this part, in float32."""
        infos = reader.infos()
        for name, new in self.names(reader):
            info = infos[name]
            cut = self.layers is not None and _VOCABULARY.search(name) and info.shape[0] == self.vocabulary
            if cut and len(info.shape) == 2:
                rows = [reader.read_rows(name, 0, self.first)]
                rows += [reader.read_rows(name, row, row + 1) for row in self.extra]
                yield new, torch.cat(rows).float()
            elif cut:
                yield new, reader.read(name)[[*range(self.first), *self.extra]].float()
            else:
                yield new, reader.read(name).float()

    def adapter_tensors(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """The adapter's tensors in this part, in float32; only the needed rows of whole tables are read."""
        indices = _indices(adapter_config(folder))
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                new = self._renamed(name)
                if new is None:
                    continue
                if self.layers is not None and _VOCABULARY.search(name):
                    table = file.get_slice(name)
                    rows = [table[: self.first], *(table[row : row + 1] for row in self.extra)]
                    yield new, torch.cat(rows).float()
                    continue
                tensor = file.get_tensor(name).float()
                if self.layers is not None and (match := _TOKENS.search(name)):
                    tensor = tensor[[self.place(id_) is not None for id_ in indices[match["module"]]]]
                    if not tensor.numel():
                        continue
                yield new, tensor

    def adapter_config(self, folder: Path) -> LoraConfig:
        """The written adapter_config.json, adjusted to this part."""
        config = adapter_config(folder)
        # Layers are renumbered, and every layer in the part is adapted.
        config.layers_to_transform = None
        config.layers_pattern = None
        if isinstance(config.target_modules, list | set):  # full names inside a larger model
            config.target_modules = [new for name in config.target_modules if (new := self._renamed(name))]
        config.trainable_token_indices = self.retrained(folder) or None
        return config

    def retrained(self, folder: Path) -> dict[str, list[int]]:
        """Module → ids in this part of the tokens that the adapter has retrained."""
        places = {
            module: [place for id_ in ids if (place := self.place(id_)) is not None]
            for module, ids in _indices(adapter_config(folder)).items()
        }
        return {module: found for module, found in places.items() if found}

    def place(self, id_: int) -> int | None:
        """A token's id in this part; None if it was cut."""
        if self.layers is None or id_ < self.first:
            return id_
        return self.first + self.extra.index(id_) if id_ in self.extra else None

    def _renamed(self, name: str) -> str | None:
        """The name inside the (cut) text model, or None when the tensor is not part of it."""
        name = _TEXT_PREFIX.sub(r"\1model.", name)
        match = _LAYER.search(name)
        if self.layers is None or match is None:
            return name
        layer = int(match.group(3))
        if layer not in self.layers:
            return None
        return f"{name[: match.start(3)]}{self.layers.index(layer)}{name[match.end(3) :]}"


def _indices(config: LoraConfig) -> Mapping[str, list[int]]:
    """The config's retrained tokens by module; our adapters always store them as a mapping."""
    indices = config.trainable_token_indices
    return indices if isinstance(indices, dict) else {}
