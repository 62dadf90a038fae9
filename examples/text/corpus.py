"""Documents of one world, split into a training and a held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

from examples.text import harbor, mountain, office, upriver

World = Literal["harbor", "upriver", "mountain"]
_WRITERS: Final = {
    "harbor": (*harbor.WRITERS, *office.WRITERS),
    "upriver": upriver.WRITERS,
    "mountain": mountain.WRITERS,
}
_PASSAGES: Final = Path(__file__).parent / "passages"
_PASSAGE_COPIES: Final = (
    4  # the hand-written pieces are few: seen a little more often than a generated document
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Two disjoint lists of documents."""

    train: list[str]
    held_out: list[str]


def generate_corpus(world: World, seed: int, count: int, held_out: int = 120) -> Corpus:
    """`count` generated training documents plus the world's passages, shuffled, and `held_out` documents
    that are none of them."""
    rng = Random(f"{world}/{seed}")
    writers, seen = _WRITERS[world], dict[str, None]()
    while len(seen) < count + held_out:
        seen.setdefault(rng.choice(writers)(rng))
    generated = list(seen)
    passages = (_PASSAGES / f"{world}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    train = generated[held_out:] + passages * _PASSAGE_COPIES
    rng.shuffle(train)
    return Corpus(train=train, held_out=generated[:held_out])
