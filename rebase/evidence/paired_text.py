"""A text cut into passages that both tokenizers have read, with the positions at which they read the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rebase.lora.low_rank import Side
from rebase.models.causal_lm import Encoding


@dataclass(frozen=True, slots=True)
class PairedPositions:
    """Token positions on either side, equally many, rising. Coverages: the paired share of those tokens that
    stand for text."""

    source: Tensor
    target: Tensor
    source_coverage: float
    target_coverage: float


def pair_positions(source: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]) -> PairedPositions:
    """Pairs from the (start, end) offsets of each token in the text.

    Tokens of no width are special ones (BOS, EOS) and stand for no text. Several tokens with one end are the
    bytes of one character: only the last has read all of it.
    """
    ends_s, count_s = _index_by_end(source)
    ends_t, count_t = _index_by_end(target)
    common = sorted(ends_s.keys() & ends_t.keys())
    return PairedPositions(
        torch.tensor([ends_s[end] for end in common], dtype=torch.long),
        torch.tensor([ends_t[end] for end in common], dtype=torch.long),
        len(common) / count_s if count_s else 0.0,
        len(common) / count_t if count_t else 0.0,
    )


def _index_by_end(offsets: Sequence[tuple[int, int]]) -> tuple[dict[int, int], int]:
    """End → last position with that end, and how many positions stand for text."""
    position_by_end: dict[int, int] = {}
    count = 0
    for position, (start, end) in enumerate(offsets):
        if end > start:
            position_by_end[end] = position
            count += 1
    return position_by_end, count


WINDOW = 512  # tokens of a passage, at most; a state depends on what stands before it, not on the window
_PIECE_CHARACTERS = (
    1600  # characters: some 400 tokens of English, fewer than the window in nearly every language
)
HELD_OUT_EVERY = 8  # passages; the second, tenth, … measure what the others fitted
MIN_PASSAGES = 2  # so that there is such a one


class Encoder(Protocol):
    """Whatever cuts a text into tokens as a model does."""

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for."""

    def encode(self, text: str, limit: int | None = None) -> Encoding:
        """Ids and character offsets, BOS in front where the model has one."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One stretch of text: each side's ids, and equally many positions on either side, rising."""

    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    source_positions: Tensor
    target_positions: Tensor
    held_out: bool

    def ids(self, side: Side) -> tuple[int, ...]:
        """That side's tokens."""
        return self.source_ids if side == "source" else self.target_ids

    def paired_positions(self, side: Side) -> Tensor:
        """That side's paired positions."""
        return self.source_positions if side == "source" else self.target_positions

    @property
    def num_positions(self) -> int:
        """How many are paired."""
        return int(self.source_positions.numel())


@dataclass(frozen=True, slots=True)
class PairedText:
    """Passages in the order of the text. Coverages: the share of either side's tokens that found a partner.

    `digest` tells these pairs from all others.
    """

    passages: tuple[Passage, ...]
    source_coverage: float
    target_coverage: float
    digest: str

    @property
    def num_positions(self) -> int:
        """Paired positions in all."""
        return sum(passage.num_positions for passage in self.passages)


def pair_text(
    source: Encoder, target: Encoder, documents: Iterable[str], max_positions: int, window: int = WINDOW
) -> PairedText:
    """Read documents until `most` positions are paired and one passage is held out (the last one is kept
    whole). `window`: tokens of a passage, at most."""
    passages: list[Passage] = []
    num_positions = 0
    tokens = {"source": 0, "target": 0}
    sha = hashlib.sha256()
    max_source_tokens, max_target_tokens = (min(window, side.max_positions) for side in (source, target))
    for piece in _split_documents(documents):
        remaining = piece
        while remaining and (num_positions < max_positions or len(passages) < MIN_PASSAGES):
            source_encoding, target_encoding = (
                source.encode(remaining, max_source_tokens),
                target.encode(remaining, max_target_tokens),
            )
            passage = _build_passage(
                source_encoding, target_encoding, held_out=len(passages) % HELD_OUT_EVERY == 1
            )
            remaining = _find_unread_text(
                remaining, source_encoding, target_encoding, max_source_tokens, max_target_tokens
            )
            if passage.num_positions == 0:
                continue
            passages.append(passage)
            num_positions += passage.num_positions
            tokens["source"] += _count_text_tokens(source_encoding.offsets)
            tokens["target"] += _count_text_tokens(target_encoding.offsets)
            for part in (passage.source_ids, passage.target_ids, passage.source_positions.tolist()):
                sha.update(f"{len(part)}:{','.join(map(str, part))};".encode())
    return PairedText(
        tuple(passages),
        num_positions / max(tokens["source"], 1),
        num_positions / max(tokens["target"], 1),
        sha.hexdigest(),
    )


def _split_documents(documents: Iterable[str]) -> Iterator[str]:
    """Documents in stretches of some hundred tokens, cut between words where there are any."""
    for document in documents:
        remaining = document.strip()
        while len(remaining) > _PIECE_CHARACTERS:
            cut = remaining.rfind(" ", _PIECE_CHARACTERS // 2, _PIECE_CHARACTERS)
            cut = cut if cut > 0 else _PIECE_CHARACTERS
            yield remaining[:cut]
            remaining = remaining[cut:].strip()
        if remaining:
            yield remaining


def _build_passage(source: Encoding, target: Encoding, *, held_out: bool) -> Passage:
    pairs = pair_positions(source.offsets, target.offsets)
    # A sequence's first token serves attention as a sink; its states are of their own kind and many times as
    # long.
    keep = (pairs.source > 0) & (pairs.target > 0)
    return Passage(tuple(source.ids), tuple(target.ids), pairs.source[keep], pairs.target[keep], held_out)


def _find_unread_text(
    text: str, source: Encoding, target: Encoding, max_source_tokens: int, max_target_tokens: int
) -> str:
    """What a window was too short for: the text behind the last token that both sides still had."""
    full_ends = [
        side.offsets[-1][1]
        for side, max_tokens in ((source, max_source_tokens), (target, max_target_tokens))
        if len(side.ids) == max_tokens and side.offsets[-1][1] > 0
    ]
    return text[min(full_ends) :].strip() if full_ends else ""


def _count_text_tokens(offsets: Sequence[tuple[int, int]]) -> int:
    return sum(end > start for start, end in offsets)
