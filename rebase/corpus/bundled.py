"""The bundled corpora: the default text, about 145 kB of several kinds, written for this project.

    prose       letters, stories, recipes, sport, health, news, opinion, reviews, biographies, history
    talk        questions and answers, an assistant's turns, interviews, mail, forums, minutes
    code        two dozen programming and markup languages, tables, logs, mathematics, chemistry
    reference   encyclopedia entries, contracts, manuals, science, examinations
    languages   German, French, Spanish, Italian, Portuguese, Dutch, Polish, Russian, Greek, Arabic, Hindi,
                Chinese, Japanese, Korean, and short texts in others
    everyday, formal, technical
                the first edition: prose; code and mathematics; this project's own pages

Documents in a file are ordered so that even its beginning is varied.

The second corpus is the semantic primes: short sentences around concepts thought to exist in every language.
The list is from the natural semantic metalanguage (Wierzbicka and Goddard); the frames are this project's.
They are the initial anchors of the method `geometric` [000].
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files

from rebase.corpus.corpus import Corpus

_PARTS = ("everyday", "formal", "languages", "technical", "reference", "code", "talk", "prose")
_SEPARATOR = "\n---\n"
_SEED = 2327  # best of 3000: gives the most evenly mixed held-out passages for four pairs of tokenizers


@lru_cache(maxsize=1)
def load_default_corpus() -> Corpus:
    """All parts, interleaved: a part with n documents gets one in each of n equal stretches of the corpus.

    Methods read only as much as they need, so every prefix should contain its share of each part. They hold
    out every eighth passage, so the position within a stretch is pseudo-random: with regular spacing, six to
    eight documents for most parts, the held-out passages would miss whole parts for a long time.
    """
    positioned = (
        ((number + _draw_fraction(text)) / len(documents), text)
        for documents in load_parts().values()
        for number, text in enumerate(documents)
    )
    return Corpus.from_documents((text for _, text in sorted(positioned)), "rebase-default-2", "Apache-2.0")


def _draw_fraction(text: str) -> float:
    """A pseudo-random number in [0, 1), derived from the text, so that an edit moves no other document."""
    return int.from_bytes(hashlib.sha256(f"{_SEED} {text}".encode()).digest()[:4], "big") / 2**32


def load_parts() -> dict[str, tuple[str, ...]]:
    """The documents of each part, in file order."""
    folder = files("rebase.corpus") / "data"
    return {name: _split_documents((folder / f"{name}.txt").read_text("utf-8")) for name in _PARTS}


def _split_documents(text: str) -> tuple[str, ...]:
    return tuple(document.strip() for document in text.split(_SEPARATOR))


_FRAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "substantives": (
        ("I", "you", "someone", "people", "something", "this thing", "my body", "this kind", "a part"),
        ("They see {}.", "It is {}, not another.", "When they think of {}, they know.", "Because of {}."),
    ),
    "determiners": (
        ("this", "the same", "another", "one", "two", "some", "all", "much", "many", "little", "few"),
        ("There is {} here.", "I want {}.", "They said it about {}.", "After this, {} was there."),
    ),
    "evaluators": (
        ("good", "bad", "big", "small"),
        ("This is {}.", "It was very {} for me.", "People can think: it is {}.", "A {} thing happened."),
    ),
    "mental": (
        ("think", "know", "want", "don't want", "feel", "see", "hear"),
        ("I {} this.", "Someone can {} something like this.", "If you {} it, say it.", "They {} it now."),
    ),
    "speech": (
        ("say", "words", "true"),
        ("About this I can tell you: {}.", "People here know {}.", "It is not {} that I want."),
    ),
    "actions": (
        ("do", "happen", "move", "touch"),
        ("Something can {} here.", "I know that it will {}.", "Maybe this did not {}.", "They {} before."),
    ),
    "being": (
        ("be somewhere", "there is", "be someone", "be something", "mine", "live", "die"),
        ("All people know what it is: {}.", "For some time, {}.", "Not now: {}.", "Because they {}."),
    ),
    "time": (
        ("when", "now", "before", "after", "a long time", "a short time", "for some time", "a moment"),
        ("It happened {}.", "I did not see it {}.", "{}, people live here.", "They said: {}."),
    ),
    "space": (
        ("where", "here", "above", "below", "far", "near", "on this side", "inside"),
        ("The thing is {}.", "Someone moved {}.", "I can see you {}.", "There is no one {}."),
    ),
    "logic": (
        ("not", "maybe", "can", "because", "if", "very", "more", "like this"),
        ("I think: {}.", "They did it {} you did it.", "This is {} good.", "{}, then we know."),
    ),
}


@lru_cache(maxsize=1)
def load_semantic_primes() -> Corpus:
    """Every prime in every frame of its category; the sentences of one frame form a document."""
    documents = (
        " ".join(frame.format(word)[0].upper() + frame.format(word)[1:] for word in words)
        for words, frames in _FRAMES.values()
        for frame in frames
    )
    return Corpus.from_documents(documents, "rebase-primes-1", "Apache-2.0")
