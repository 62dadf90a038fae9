"""What both bases read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebase.corpus.bundled import load_default_corpus, load_semantic_primes
from rebase.corpus.corpus import Corpus, read_corpus_file
from rebase.corpus.load import load_corpus
from rebase.errors import RequestInvalid


def test_the_bundled_text_is_what_is_read_where_none_is_named() -> None:
    corpus = load_default_corpus()
    whole = "\n".join(corpus.documents)
    for sign in ("SELECT", "def merge", "Theorem", "ferry", "Grossmutter", "invoice", "Question:"):
        assert sign in whole
    assert load_corpus(None) is corpus
    assert (corpus.name, corpus.license_id) == ("rebase-default-2", "Apache-2.0")


def test_every_prime_stands_in_several_frames() -> None:
    corpus = load_semantic_primes()
    for word in ("I ", "know", "good", "before", "near", "because", "touch", "live"):
        assert sum(word in document for document in corpus.documents) >= 3, word


def test_plain_text_is_cut_at_empty_lines(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("one\ntwo\n\nthree\n\n\n\none\ntwo\n")
    assert read_corpus_file(tmp_path / "some.txt").documents == ("one\ntwo", "three")


def test_a_line_of_json_may_hold_any_other_line_break(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"text": "one\u2028two\x85three"}\n{"text": "four"}\n', "utf-8")
    assert read_corpus_file(tmp_path / "some.jsonl").documents == ("one\u2028two\x85three", "four")


@given(st.lists(st.text(min_size=1)))
def test_json_lines_give_their_texts(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> None:
    path = tmp_path_factory.mktemp("corpus") / "some.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    whole = (text.encode("utf-8", "replace").decode() for text in documents)
    wanted = tuple(dict.fromkeys(s for text in whole if (s := text.strip())))
    if not wanted:
        with pytest.raises(RequestInvalid, match="contains no text"):
            read_corpus_file(path)
    else:
        assert read_corpus_file(path).documents == wanted


def test_half_a_surrogate_pair_in_json_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"text": "half \\ud800 a pair"}')
    assert read_corpus_file(tmp_path / "some.jsonl").documents == ("half ? a pair",)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\nnonsense', "not valid JSON in line 2"),
        ("a.jsonl", b'{"text": "fine"}\n{"body": "x"}', "no string field 'text' in line 2"),
        ("a.jsonl", b"[" * 100_000, "not valid JSON in line 1"),
        ("a.jsonl", b"[1]", "no string field 'text' in line 1"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", b"  \n\n ", "contains no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestInvalid, match=says) as caught:
        read_corpus_file(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="No such file"):
        load_corpus(tmp_path / "none.txt")


def test_the_digest_tells_where_documents_end() -> None:
    assert Corpus.from_documents(["ab", "c"], "x").digest != Corpus.from_documents(["a", "bc"], "x").digest
