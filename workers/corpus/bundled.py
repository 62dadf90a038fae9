"""The text that is read when a request names none: some 39 kB of several kinds, written for this project.

`everyday` holds stories, letters, news, instructions and a little German, French, Spanish and Italian;
`formal` code, tables, mathematics, questions with answers; `technical` prose from this project's own pages.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from workers.corpus.corpus import Corpus

_PARTS = ("everyday", "formal", "technical")
_BETWEEN = "\n---\n"


@lru_cache(maxsize=1)
def default_corpus() -> Corpus:
    """Documents of the parts in turn, so that the beginning already has some of each."""
    folder = files("workers.corpus") / "data"
    parts = [(folder / f"{name}.txt").read_text("utf-8").split(_BETWEEN) for name in _PARTS]
    longest = max(map(len, parts))
    mixed = (part[n] for n in range(longest) for part in parts if n < len(part))
    return Corpus.of(mixed, "rebase-default-1", "Apache-2.0")
