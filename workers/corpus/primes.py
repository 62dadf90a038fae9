"""Short sentences around the semantic primes, the words that every language is held to have.

The list is that of the natural semantic metalanguage (Wierzbicka and Goddard); the frames are this project's.
They are the anchors with which `geometric` begins [000].
"""

from __future__ import annotations

from functools import lru_cache

from workers.corpus.corpus import Corpus

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
    """Every prime in every frame of its kind; the sentences of one frame are one document."""
    documents = (
        " ".join(frame.format(word)[0].upper() + frame.format(word)[1:] for word in words)
        for words, frames in _FRAMES.values()
        for frame in frames
    )
    return Corpus.from_documents(documents, "rebase-primes-1", "Apache-2.0")
