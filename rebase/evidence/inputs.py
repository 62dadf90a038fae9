"""The opened inputs of a conversion: configs and headers are read first, tensor data later, site by site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rebase.errors import RequestInvalid
from rebase.evidence.embeddings import SharedTokenRows
from rebase.hub.base import PinnedRepo
from rebase.lora.source_adapter import SourceAdapter
from rebase.methods.site_pairing import Pairing
from rebase.models.model_reader import ModelReader
from rebase.models.vocabulary import SharedTokens
from rebase.models.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class PinnedInputs:
    """The three repos of a request, pinned to commits."""

    adapter: PinnedRepo
    source: PinnedRepo
    target: PinnedRepo
    warnings: tuple[str, ...] = ()


def require_distinct_bases(source: PinnedRepo, target: PinnedRepo) -> None:
    """Raises RequestInvalid if source and target are the same base at the same commit."""
    if source.public == target.public:
        raise RequestInvalid(
            f"Source and target are the same base at the same commit ({target}).",
            hint="Set 'target' to the new base; the adapter already works on this one.",
            pointer="/target",
        )


@dataclass(frozen=True, slots=True)
class LoadedInputs:
    """Everything a transfer works on; tensors are still on disk."""

    pinned: PinnedInputs
    source: ModelWeights
    target: ModelWeights
    source_reader: ModelReader
    target_reader: ModelReader
    adapter: SourceAdapter
    pairing: Pairing
    vocabularies: SharedTokens | None
    source_tokenizer: dict[str, Any] | None  # tokenizer.json
    target_tokenizer: dict[str, Any] | None


def build_shared_token_rows(inputs: LoadedInputs, max_tokens: int) -> SharedTokenRows | None:
    """Pseudo-activations from at most `most` shared tokens, spread evenly over the vocabulary."""
    tokens = inputs.vocabularies
    if tokens is None or tokens.source_ids.numel() == 0:
        return None
    count = tokens.source_ids.numel()
    positions = torch.linspace(0, count - 1, min(count, max_tokens), dtype=torch.float64).round().long()
    return SharedTokenRows(
        inputs.source, inputs.target, tokens.source_ids[positions], tokens.target_ids[positions]
    )
