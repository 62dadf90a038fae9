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
from rebase.models.causal_lm import CausalLM, TokenizerWithBos, load_base_model, load_tokenizer
from rebase.models.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class BaseModelRef:
    """One base model: its pinned repo and its weights."""

    repo: PinnedRepo
    weights: ModelWeights


_MEMORY_SHARE = (
    0.6  # share of free memory for models; activations, optimizer state and the allocator need the rest
)


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """A base on disk. `ends`: end-of-text ids in addition to those in its config."""

    weights: ModelWeights
    reader: TensorReader
    tokenizer: Mapping[str, Any] | None
    extra_eos_ids: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Its size in float32."""
        return sum(4 * math.prod(info.shape) for info in self.reader.infos().values())


@dataclass
class BasePair:
    """Loads models on request and keeps them while memory allows. `room`: bytes that models may use; if None,
    a share of the memory free at the first request."""

    source: BaseCheckpoint
    target: BaseCheckpoint
    device: torch.device
    budget_bytes: int | None = None
    _loaded: dict[Side, CausalLM] = field(default_factory=dict)

    @property
    def fit_together(self) -> bool:
        """Whether both fit in memory at once."""
        return self.source.num_bytes + self.target.num_bytes <= self._measure_budget()

    def get_model(self, side: Side) -> CausalLM:
        """That side's model; the other one is released if both do not fit."""
        if side not in self._loaded:
            if not self.fit_together:
                self._loaded.clear()
            checkpoint = self.get_checkpoint(side)
            with _errors_at(side):
                self._loaded[side] = load_base_model(
                    checkpoint.weights,
                    checkpoint.reader,
                    self._require_tokenizer_json(side),
                    self.device,
                    extra_eos_ids=checkpoint.extra_eos_ids,
                    streamed=not self.fits(side),
                )
        return self._loaded[side]

    def fits(self, side: Side) -> bool:
        """Whether that model fits by itself, so that it need not be streamed."""
        return self.get_checkpoint(side).num_bytes <= self._measure_budget()

    def get_tokenizer(self, side: Side) -> TokenizerWithBos:
        """That side's tokenizer. RequestInvalid if the repo has none, UnsupportedModel if unreadable."""
        with _errors_at(side):
            return load_tokenizer(
                self._require_tokenizer_json(side), self.get_checkpoint(side).weights.config
            )

    def release(self) -> None:
        """Release both models."""
        self._loaded.clear()

    def get_checkpoint(self, side: Side) -> BaseCheckpoint:
        """The base on disk."""
        return self.source if side == "source" else self.target

    def _require_tokenizer_json(self, side: Side) -> Mapping[str, Any]:
        tokenizer_json = self.get_checkpoint(side).tokenizer
        if tokenizer_json is None:
            raise RequestInvalid(
                f"The {side} base has no tokenizer.json, so it cannot tokenize text.",
                hint="Use a revision that has one, or a method that only needs weights.",
                pointer=f"/{side}",
            )
        return tokenizer_json

    def _measure_budget(self) -> int:
        if self.budget_bytes is None:
            self.budget_bytes = int(_MEMORY_SHARE * measure_free_bytes(self.device))
        return self.budget_bytes


@contextmanager
def _errors_at(side: Side) -> Iterator[None]:
    """Point errors without a pointer at this side's base."""
    try:
        yield
    except UnsupportedModel as exc:
        exc.pointer = exc.pointer or f"/{side}"
        raise


def measure_free_bytes(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123  (no ordinary file)
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
