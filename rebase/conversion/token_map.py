"""Which row of the target's token tables stands for each token of the adapter.

The adapter's own tokenizer names the tokens that it was trained with, among them new ones that its base does
not know; without one the source base's tokenizer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rebase.errors import FileMissing, RebaseError, TransferError, UnsafeFile
from rebase.evidence.inputs import LoadedInputs
from rebase.hub.base import Hub
from rebase.models.model_reader import read_tokenizer
from rebase.models.vocabulary import Vocabulary, find_shared_tokens, map_token_rows

# A tokenizer in an adapter's folder belongs to it if it agrees with the base's on nearly every token.
_MIN_AGREEMENT = 0.99
_MAX_LISTED = 5  # tokens named in a message


@dataclass(frozen=True, slots=True)
class TokenMap:
    """The vocabularies of adapter and bases. `adapter` is the source base's where the adapter has none."""

    adapter: Vocabulary
    source: Vocabulary
    target: Vocabulary
    warnings: tuple[str, ...] = ()

    def map_rows(self, rows: int, target_rows: int) -> Tensor:
        """For each of the adapter's `rows`, the target's row of the same token, or −1: (rows,) int64.

        Bases with one vocabulary also share the rows that it does not name: an adapter may have given such a
        row to a token of its own. A token that the target has elsewhere goes there all the same.
        """
        if not find_shared_tokens(self.source, self.target).identical:
            return map_token_rows(self.adapter, self.target, rows, target_rows)
        row_map = torch.full((rows,), -1, dtype=torch.long)
        shared = min(rows, target_rows)
        row_map[:shared] = torch.arange(shared)
        return row_map

    def describe(self, rows: list[int]) -> str:
        """Tokens by name, at most five."""
        names = self.names
        shown = ", ".join(
            repr(names[id_])[:40] if id_ in names else f"row {id_}" for id_ in rows[:_MAX_LISTED]
        )
        return shown if len(rows) <= _MAX_LISTED else f"{shown} and {len(rows) - _MAX_LISTED} more"

    @property
    def names(self) -> Mapping[int, str]:
        """Token id → its spelling in the adapter's tokenizer."""
        return {id_: piece for piece, id_ in self.adapter.pieces.items()}

    def is_new(self, id_: int) -> bool:
        """Is it a token that the adapter added, unknown to its base's tokenizer?"""
        name = self.names.get(id_)
        return name is not None and name not in self.source.pieces

    @property
    def has_own_tokens(self) -> bool:
        """Does the adapter's tokenizer name tokens that the target's lacks, with all others at equal ids?"""
        pieces = self.adapter.pieces
        return self.adapter is not self.source and all(
            pieces.get(piece) == id_ for piece, id_ in self.target.pieces.items()
        )


def read_token_map(inputs: LoadedInputs, hub: Hub) -> TokenMap | None:
    """The three vocabularies; None if one of the bases has no tokenizer.json that can be read."""
    source, target = _parse(inputs.source_tokenizer), _parse(inputs.target_tokenizer)
    if source is None or target is None:
        return None
    adapter, warnings = _read_adapter_vocabulary(inputs, hub, source)
    return TokenMap(adapter or source, source, target, warnings)


def _read_adapter_vocabulary(
    inputs: LoadedInputs, hub: Hub, source: Vocabulary
) -> tuple[Vocabulary | None, tuple[str, ...]]:
    try:
        raw = read_tokenizer(hub, inputs.pinned.adapter)
    except (FileMissing, UnsafeFile) as exc:
        return None, (f"The adapter's own tokenizer.json was not used: {exc.message}",)
    if raw is None:
        return None, ()
    vocabulary = _parse(raw)
    if vocabulary is None:
        return None, ("The adapter's own tokenizer.json was not used: it cannot be read.",)
    shared = vocabulary.pieces.keys() & source.pieces.keys()
    agreeing = sum(vocabulary.pieces[piece] == source.pieces[piece] for piece in shared)
    if agreeing < _MIN_AGREEMENT * len(source.pieces):
        return None, (
            "The adapter's own tokenizer.json was not used: it gives other ids to the tokens of its base.",
        )
    return vocabulary, ()


def _parse(raw: dict[str, Any] | None) -> Vocabulary | None:
    if raw is None:
        return None
    try:
        return Vocabulary.from_tokenizer_json(raw)
    except (TransferError, RebaseError):
        return None
