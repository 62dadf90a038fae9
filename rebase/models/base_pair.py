"""The two bases as running models: both in memory where they fit, else one at a time.

A base that does not even fit alone is streamed: its layers stay on disk, and accelerate brings each one in
for the moment in which it runs.
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


_SHARE = 0.6  # of what is free: activations, moments and the allocator need the rest


@dataclass(frozen=True, slots=True)
class Stored:
    """A base as it lies on disk. `ends`: ids that end a text beside those that its config names."""

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
    """Loads what is asked for and keeps it while there is room. `room`: bytes that models may take; None
    measures what is free at the first request."""

    source: Stored
    target: Stored
    device: torch.device
    room: int | None = None
    _loaded: dict[Side, TextModel] = field(default_factory=dict)

    @property
    def together(self) -> bool:
        """Do both fit at once?"""
        return self.source.bytes + self.target.bytes <= self._room()

    def model(self, side: Side) -> TextModel:
        """That side's model; the other one is let go where there is no room for two."""
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
        """Is there room for that model by itself, so that it need not be streamed?"""
        return self.stored(side).bytes <= self._room()

    def words(self, side: Side) -> Words:
        """That side's tokenizer alone. Raises RequestInvalid where the repo has none that can be read."""
        with _about(side):
            return words_of(self._tokenizer(side), self.stored(side).weights.config)

    def release(self) -> None:
        """Let both models go."""
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
    """An error that does not say yet which field it is about is about this base."""
    try:
        yield
    except UnsupportedModel as exc:
        exc.pointer = exc.pointer or f"/{side}"
        raise


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123  (no ordinary file)
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
