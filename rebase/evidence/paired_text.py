"""Splits a text into passages tokenized by both tokenizers, and pairs positions where their tokens align."""

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
    """Paired token positions, equally many per side, increasing. Coverages: the share of each side's text
    tokens that are paired."""

    source: Tensor
    target: Tensor
    source_coverage: float
    target_coverage: float


def pair_positions(source: Sequence[tuple[int, int]], target: Sequence[tuple[int, int]]) -> PairedPositions:
    """Pair tokens that end at the same character, given each token's (start, end) offsets in the text.

    Tokens of zero width are special tokens (BOS, EOS) and are skipped. Several tokens with the same end are
    the bytes of one character: only the last one has seen all of it.
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
    """End offset → last position with that end, and the number of text tokens."""
    position_by_end: dict[int, int] = {}
    count = 0
    for position, (start, end) in enumerate(offsets):
        if end > start:
            position_by_end[end] = position
            count += 1
    return position_by_end, count


WINDOW = 512  # maximum tokens per passage
_PIECE_CHARACTERS = 1600  # about 400 English tokens; fits into the window in nearly every language
HELD_OUT_EVERY = 8  # passages; the second, tenth, … are held out
MIN_PASSAGES = 2  # so that at least one is held out


class Encoder(Protocol):
    """A model's tokenizer."""

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for."""

    def encode(self, text: str, limit: int | None = None) -> Encoding:
        """Ids and character offsets, BOS in front where the model has one."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One piece of text: each side's token ids, and paired positions, equally many per side, increasing."""

    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    source_positions: Tensor
    target_positions: Tensor
    held_out: bool

    def ids(self, side: Side) -> tuple[int, ...]:
        """That side's token ids."""
        return self.source_ids if side == "source" else self.target_ids

    def paired_positions(self, side: Side) -> Tensor:
        """That side's paired positions."""
        return self.source_positions if side == "source" else self.target_positions

    @property
    def num_positions(self) -> int:
        """Number of paired positions."""
        return int(self.source_positions.numel())


@dataclass(frozen=True, slots=True)
class PairedText:
    """Passages in text order. Coverages: the share of each side's text tokens that are paired.

    `digest` identifies these pairs.
    """

    passages: tuple[Passage, ...]
    source_coverage: float
    target_coverage: float
    digest: str

    @property
    def num_positions(self) -> int:
        """Total number of paired positions."""
        return sum(passage.num_positions for passage in self.passages)


def pair_text(
    source: Encoder, target: Encoder, documents: Iterable[str], max_positions: int, window: int = WINDOW
) -> PairedText:
    """Read documents until `max_positions` positions are paired and one passage is held out (the last passage
    is kept whole). `window`: maximum tokens per passage."""
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
    """Split documents into pieces of a few hundred tokens, between words if possible."""
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
    # A sequence's first token is an attention sink, whose hidden states are atypical and have a far larger
    # norm.
    keep = (pairs.source > 0) & (pairs.target > 0)
    return Passage(tuple(source.ids), tuple(target.ids), pairs.source[keep], pairs.target[keep], held_out)


def _find_unread_text(
    text: str, source: Encoding, target: Encoding, max_source_tokens: int, max_target_tokens: int
) -> str:
    """The text that did not fit into a window: everything after the last token read by both sides."""
    full_ends = [
        side.offsets[-1][1]
        for side, max_tokens in ((source, max_source_tokens), (target, max_target_tokens))
        if len(side.ids) == max_tokens and side.offsets[-1][1] > 0
    ]
    return text[min(full_ends) :].strip() if full_ends else ""


def _count_text_tokens(offsets: Sequence[tuple[int, int]]) -> int:
    return sum(end > start for start, end in offsets)
