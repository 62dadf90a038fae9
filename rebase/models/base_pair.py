"""The source and target base as running models: both in memory if they fit, otherwise one at a time.

A base that does not fit even alone is streamed: its weights stay on disk, and accelerate loads each layer
just before it runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from rebase.errors import RequestInvalid, UnsupportedModel
from rebase.hub.base import PinnedRepo
from rebase.lora.low_rank import Side
from rebase.lora.tensors import TensorReader
from rebase.models.causal_lm import TextModel, Words, load, words_of
from rebase.models.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class Base:
    """One base model: its pinned repo and its weights."""

    repo: PinnedRepo
    weights: ModelWeights


_SHARE = 0.6  # share of free memory for models; activations, optimizer state and the allocator need the rest


@dataclass(frozen=True, slots=True)
class Stored:
    """A base on disk. `ends`: end-of-text ids in addition to those in its config."""

    weights: ModelWeights
    reader: TensorReader
    tokenizer: Mapping[str, Any] | None
    ends: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Its size in float32."""
        return sum(4 * math.prod(info.shape) for info in self.reader.infos().values())


@dataclass
class Bases:
    """Loads models on request and keeps them while memory allows. `room`: bytes that models may use; if None,
    a share of the memory free at the first request."""

    source: Stored
    target: Stored
    device: torch.device
    room: int | None = None
    _loaded: dict[Side, TextModel] = field(default_factory=dict)

    @property
    def together(self) -> bool:
        """Whether both fit in memory at once."""
        return self.source.bytes + self.target.bytes <= self._room()

    def model(self, side: Side) -> TextModel:
        """That side's model; the other one is released if both do not fit."""
        if side not in self._loaded:
            if not self.together:
                self._loaded.clear()
            stored = self.stored(side)
            with _about(side):
                self._loaded[side] = load(
                    stored.weights,
                    stored.reader,
                    self._tokenizer(side),
                    self.device,
                    ends=stored.ends,
                    streamed=not self.fits(side),
                )
        return self._loaded[side]

    def fits(self, side: Side) -> bool:
        """Whether that model fits by itself, so that it need not be streamed."""
        return self.stored(side).bytes <= self._room()

    def words(self, side: Side) -> Words:
        """That side's tokenizer. RequestInvalid if the repo has none, UnsupportedModel if unreadable."""
        with _about(side):
            return words_of(self._tokenizer(side), self.stored(side).weights.config)

    def release(self) -> None:
        """Release both models."""
        self._loaded.clear()

    def stored(self, side: Side) -> Stored:
        """The base on disk."""
        return self.source if side == "source" else self.target

    def _tokenizer(self, side: Side) -> Mapping[str, Any]:
        found = self.stored(side).tokenizer
        if found is None:
            raise RequestInvalid(
                f"The {side} base has no tokenizer.json, so it cannot read a text.",
                hint="Name a revision that has one, or a method that needs weights alone.",
                pointer=f"/{side}",
            )
        return found

    def _room(self) -> int:
        if self.room is None:
            self.room = int(_SHARE * free_bytes(self.device))
        return self.room


@contextmanager
def _about(side: Side) -> Iterator[None]:
    """Point errors without a pointer at this side's base."""
    try:
        yield
    except UnsupportedModel as exc:
        exc.pointer = exc.pointer or f"/{side}"
        raise


def free_bytes(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123  (no ordinary file)
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
