"""Vocabularies as bytes, with the tokenizers library as the witness."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rebase.errors import UnsupportedModel
from rebase.models.vocabulary import Vocabulary, find_shared_tokens

TEXT = ["the cat sat on the mat", "Grüße aus Köln — naïve café", "def f(x):\n    return x + 1\n", "日本語"]


def _byte_level(specials=("<|end|>",), size=400):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return json.loads(tokenizer.to_str())


def _sentencepiece(pieces, kind="Unigram", added=()):
    vocab = [[piece, -1.0] for piece in pieces] if kind == "Unigram" else {p: i for i, p in enumerate(pieces)}
    model = {"type": kind, "vocab": vocab, "byte_fallback": True}
    if kind == "BPE":
        model["merges"] = []
    return {
        "model": model,
        "added_tokens": [{"id": id_, "content": content, "special": True} for id_, content in added],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
    }


def test_byte_level_tokens_are_the_bytes_that_they_decode_to():
    raw = _byte_level()
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    vocabulary = Vocabulary.from_tokenizer_json(raw)
    assert all(bytes([byte]) in vocabulary.tokens for byte in range(256))
    for token, id_ in vocabulary.tokens.items():
        try:
            text = token.decode()
        except UnicodeDecodeError:
            continue
        assert tokenizer.decode([id_], skip_special_tokens=False) == text
    assert b" the" in vocabulary.tokens


def test_added_tokens_are_never_shared():
    vocabulary = Vocabulary.from_tokenizer_json(_byte_level())
    assert b"<|end|>" not in vocabulary.tokens
    assert "<|end|>" in vocabulary.pieces
    assert len(vocabulary.tokens) == len(vocabulary.pieces) - 1


@pytest.mark.parametrize("kind", ["Unigram", "BPE"])
def test_sentencepiece_spaces_and_byte_tokens_become_bytes(kind):
    raw = _sentencepiece(
        ["<unk>", "\u2581the", "\u2581", "<0x20>", "<0xE6>", "cat"], kind, added=[(0, "<unk>")]
    )
    tokens = Vocabulary.from_tokenizer_json(raw).tokens
    assert tokens == {b" the": 1, b" ": 2, b"\xe6": 4, b"cat": 5}


def test_a_word_level_vocabulary_is_taken_as_it_is_spelled():
    raw = {"model": {"type": "WordLevel", "vocab": {"the": 0, "\u2581the": 1}}}
    assert Vocabulary.from_tokenizer_json(raw).tokens == {b"the": 0, "\u2581the".encode(): 1}


def test_unlike_tokenizers_share_the_tokens_with_equal_bytes_in_source_order():
    a = Vocabulary.from_tokenizer_json(_byte_level())
    b = Vocabulary.from_tokenizer_json(_sentencepiece(["<unk>", "\u2581the", "zzz", "<0xE6>", "\u2581cat"]))
    found = find_shared_tokens(a, b)
    pairs = dict(zip(found.source_ids.tolist(), found.target_ids.tolist(), strict=True))
    assert pairs[a.tokens[b" the"]] == 1
    assert pairs[a.tokens[b"\xe6"]] == 3
    assert found.source_ids.tolist() == sorted(found.source_ids.tolist())
    count = len(pairs)
    assert found.overlap_source == count / len(a.tokens)
    assert found.overlap_target == count / 5
    assert found.jaccard == count / (len(a.tokens) + 5 - count)
    assert not found.identical


def test_a_vocabulary_is_identical_to_itself_and_only_then():
    a = Vocabulary.from_tokenizer_json(_byte_level())
    same = find_shared_tokens(a, Vocabulary.from_tokenizer_json(_byte_level()))
    assert same.identical
    assert same.overlap_source == same.overlap_target == same.jaccard == 1.0
    assert torch.equal(same.source_ids, same.target_ids)
    other = find_shared_tokens(a, Vocabulary.from_tokenizer_json(_byte_level(specials=("<|stop|>",))))
    assert not other.identical
    assert other.jaccard == 1.0


def test_vocabularies_without_a_common_token_give_empty_tensors():
    a = Vocabulary.from_tokenizer_json(_sentencepiece(["x"]))
    b = Vocabulary.from_tokenizer_json(_sentencepiece(["y"]))
    found = find_shared_tokens(a, b)
    assert found.source_ids.shape == found.target_ids.shape == (0,)
    assert found.jaccard == 0.0


def test_a_piece_that_no_text_can_spell_is_left_out():
    raw = _sentencepiece(["\ud800", "ok"])
    assert Vocabulary.from_tokenizer_json(raw).tokens == {b"ok": 1}
    byte_level = {
        "model": {"type": "BPE", "vocab": {"日": 0, "a": 1}},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]},
    }
    assert Vocabulary.from_tokenizer_json(byte_level).tokens == {b"a": 1}


@pytest.mark.parametrize(
    "raw",
    [
        {},
        [],
        {"model": 3},
        {"model": {"type": "WordPiece", "vocab": {}}},
        {"model": {"type": "BPE"}},
        {"model": {"type": "BPE", "vocab": {"a": "1"}}},
        {"model": {"type": "BPE", "vocab": {"a": -1}}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.1], 7]}},
        {"model": {"type": "BPE", "vocab": {}}, "added_tokens": [{"id": 1}]},
        {"model": {"type": "BPE", "vocab": {}}, "added_tokens": {"id": 1}},
    ],
)
def test_a_document_that_is_no_tokenizer_is_refused(raw):
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        Vocabulary.from_tokenizer_json(raw)
