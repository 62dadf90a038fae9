"""A text cut into passages that both tokenizers have read, with the positions at which they read the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rebase.evidence.token_alignment import pair_positions
from rebase.lora.low_rank import Side
from workers.models import Encoded

WINDOW = 512  # tokens of a passage, at most; a state depends on what stands before it, not on the window
_PIECE = 1600  # characters: some 400 tokens of English, fewer than the window in nearly every language
HELD_OUT_EVERY = 8  # passages; the second, tenth, … measure what the others fitted
FEWEST_PASSAGES = 2  # so that there is such a one


class Reads(Protocol):
    """Whatever cuts a text into tokens as a model does."""

    @property
    def context(self) -> int:
        """The longest sequence that the model was made for."""

    def encode(self, text: str, limit: int | None = None) -> Encoded:
        """Ids and character offsets, BOS in front where the model has one."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One stretch of text: each side's ids, and equally many positions on either side, rising."""

    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    source_at: Tensor
    target_at: Tensor
    held_out: bool

    def ids(self, side: Side) -> tuple[int, ...]:
        """That side's tokens."""
        return self.source_ids if side == "source" else self.target_ids

    def at(self, side: Side) -> Tensor:
        """That side's paired positions."""
        return self.source_at if side == "source" else self.target_at

    @property
    def positions(self) -> int:
        """How many are paired."""
        return int(self.source_at.numel())


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
    def positions(self) -> int:
        """Paired positions in all."""
        return sum(passage.positions for passage in self.passages)


def pair_text(
    source: Reads, target: Reads, documents: Iterable[str], most: int, window: int = WINDOW
) -> PairedText:
    """Read documents until `most` positions are paired and one passage is held out (the last one is kept
    whole). `window`: tokens of a passage, at most."""
    passages: list[Passage] = []
    found = 0
    tokens = {"source": 0, "target": 0}
    sha = hashlib.sha256()
    ours_most, theirs_most = (min(window, side.context) for side in (source, target))
    for piece in _pieces(documents):
        rest = piece
        while rest and (found < most or len(passages) < FEWEST_PASSAGES):
            ours, theirs = source.encode(rest, ours_most), target.encode(rest, theirs_most)
            passage = _passage(ours, theirs, held_out=len(passages) % HELD_OUT_EVERY == 1)
            rest = _unread(rest, ours, theirs, ours_most, theirs_most)
            if passage.positions == 0:
                continue
            passages.append(passage)
            found += passage.positions
            tokens["source"] += _of_text(ours.offsets)
            tokens["target"] += _of_text(theirs.offsets)
            for part in (passage.source_ids, passage.target_ids, passage.source_at.tolist()):
                sha.update(f"{len(part)}:{','.join(map(str, part))};".encode())
    return PairedText(
        tuple(passages),
        found / max(tokens["source"], 1),
        found / max(tokens["target"], 1),
        sha.hexdigest(),
    )


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    """Documents in stretches of some hundred tokens, cut between words where there are any."""
    for document in documents:
        rest = document.strip()
        while len(rest) > _PIECE:
            cut = rest.rfind(" ", _PIECE // 2, _PIECE)
            cut = cut if cut > 0 else _PIECE
            yield rest[:cut]
            rest = rest[cut:].strip()
        if rest:
            yield rest


def _passage(ours: Encoded, theirs: Encoded, *, held_out: bool) -> Passage:
    pairs = pair_positions(ours.offsets, theirs.offsets)
    # A sequence's first token serves attention as a sink; its states are of their own kind and many times as
    # long.
    keep = (pairs.source > 0) & (pairs.target > 0)
    return Passage(tuple(ours.ids), tuple(theirs.ids), pairs.source[keep], pairs.target[keep], held_out)


def _unread(text: str, ours: Encoded, theirs: Encoded, ours_most: int, theirs_most: int) -> str:
    """What a window was too short for: the text behind the last token that both sides still had."""
    full = [
        side.offsets[-1][1]
        for side, most in ((ours, ours_most), (theirs, theirs_most))
        if len(side.ids) == most and side.offsets[-1][1] > 0
    ]
    return text[min(full) :].strip() if full else ""


def _of_text(offsets: Sequence[tuple[int, int]]) -> int:
    return sum(end > start for start, end in offsets)
