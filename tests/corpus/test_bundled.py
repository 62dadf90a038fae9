"""The text that comes with the project: whole, varied, mixed, and nothing that adapters are tested with."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from importlib.resources import files
from itertools import accumulate
from math import sqrt

import pytest

from rebase.corpus.bundled import load_default_corpus, load_parts
from rebase.evidence.paired_text import PairedText, pair_text
from rebase.models.causal_lm import Encoding
from support.real_tasks import HELD_OUT_SEED, PROMPTS_SEED, TASKS, TRAINING_SEED

FIRST_EDITION = ("everyday", "formal", "technical")
PART_OF = {text: part for part, documents in load_parts().items() for text in documents}
PARTS = sorted(load_parts())


class WordByWord:
    """Reads words and signs; their numbers are given out as they come."""

    max_positions = 2**31

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def encode(self, text: str, limit: int | None = None) -> Encoding:
        found = list(re.finditer(r"\w+|[^\w\s]", text))[:limit]
        ids = [self.known.setdefault(match.group(), len(self.known)) for match in found]
        return Encoding(ids, [match.span() for match in found])

    def read(self, *documents: str, most: int = 10**9) -> PairedText:
        return pair_text(self, self, documents, most)


def runs(text: str, length: int) -> set[str]:
    return {text[at : at + length] for at in range(len(text) - length + 1)}


def test_every_file_of_the_folder_is_read_and_is_plain_utf_8() -> None:
    folder = files("rebase.corpus") / "data"
    assert sorted(file.name for file in folder.iterdir()) == [f"{part}.txt" for part in PARTS]
    for part in PARTS:
        text = (folder / f"{part}.txt").read_bytes().decode("utf-8")
        odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs")} - {"\n", "\t"}
        assert not odd | ({"\ufffd", "\ufeff"} & set(text)), part


def test_the_text_has_the_size_that_is_said_of_it() -> None:
    whole = "\n".join(load_default_corpus().documents)
    assert 130_000 < len(whole.encode()) < 160_000
    assert max(map(len, whole.split("\n"))) < 1200


@pytest.mark.parametrize("part", PARTS)
def test_documents_are_a_passage_long(part: str) -> None:
    longest = 2600 if part in FIRST_EDITION else 1500
    shortest = 280 if part in FIRST_EDITION else 300
    for text in load_parts()[part]:
        size = len(text)
        dense = part == "languages" and sum(ord(c) > 0x2E80 for c in text) > size / 2
        assert (200 if dense else shortest) <= size <= longest, text[:40]


def test_no_document_is_left_out_as_a_repetition() -> None:
    assert sorted(load_default_corpus().documents) == sorted(
        t for texts in load_parts().values() for t in texts
    )


def test_no_two_documents_share_a_run_of_sixty_characters() -> None:
    """But for the project's own pages, which say some things twice."""
    first: dict[str, str] = {}
    for text in load_default_corpus().documents:
        for run in runs(text, 60):
            other = first.setdefault(run, text)
            assert other is text or PART_OF[other] == PART_OF[text] == "technical", run


def test_any_beginning_has_some_of_each_part() -> None:
    documents = load_default_corpus().documents
    sizes = list(accumulate(map(len, documents)))
    for share, within in ((0.1, 0.1), (0.25, 0.1), (0.5, 0.1)):
        beginning = [t for t, end in zip(documents, sizes, strict=True) if end <= share * sizes[-1]]
        assert {PART_OF[text] for text in beginning} == set(PARTS)
        for part, of_part in load_parts().items():
            here = sum(len(text) for text in beginning if PART_OF[text] == part)
            assert here / sum(map(len, of_part)) == pytest.approx(share, abs=within), (part, share)


@pytest.mark.parametrize("most", [16_384, 10**9])
def test_what_is_held_out_is_mixed_as_the_text_is(most: int) -> None:
    """Every eighth passage is. Taken in strict turn, the eight parts would leave it to a single one of them;
    drawn by lot, the counts stay within two standard deviations of their shares, and none is nothing."""
    reader = WordByWord()
    of = {p.source_ids: PART_OF[text] for text in PART_OF for p in reader.read(text).passages}
    passages = reader.read(*load_default_corpus().documents, most=most).passages
    everywhere = Counter(of[p.source_ids] for p in passages)
    held_out = Counter(of[p.source_ids] for p in passages if p.held_out)
    assert set(everywhere) == set(PARTS)
    for part, count in everywhere.items():
        assert abs(held_out[part] - count / 8) <= 2 * sqrt(count / 8), part
        assert held_out[part] > 0 or count < 8, part


@pytest.mark.parametrize("name", sorted(TASKS))
def test_nothing_of_a_task_that_adapters_are_measured_with_is_in_the_text(name: str) -> None:
    examples = [
        example
        for seed in (TRAINING_SEED, HELD_OUT_SEED, PROMPTS_SEED)
        for example in TASKS[name].examples(seed, 200)
    ]
    of_task = {run for example in examples for run in runs(example.prompt + example.answer, 24)}
    assert len(of_task) > 500
    assert not of_task & runs("\n".join(load_default_corpus().documents), 24)


@pytest.mark.parametrize(
    ("script", "part"),
    [("CYRILLIC", 900), ("GREEK", 600), ("ARABIC", 600), ("DEVANAGARI", 600), ("CJK", 700), ("HANGUL", 300)],
)
def test_languages_are_more_than_a_sample(script: str, part: int) -> None:
    letters = "".join(load_parts()["languages"])
    assert sum(unicodedata.name(c, "").startswith(script) for c in letters) > part
