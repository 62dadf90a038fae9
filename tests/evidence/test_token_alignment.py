"""Positions of two tokenisations that have read the same text; with real tokenizers of several kinds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rebase.evidence.paired_text import pair_positions

TEXTS = [
    "The harbour master counted seven ships before noon.",
    "Über die Brücke — naïve café, 東京 and 🚢🚢 again.",
    "a  b\n\n\tc",
]


def byte_level(size):
    """As GPT-2 and Llama 3: bytes, no unknown token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXTS * 20, trainer)
    return bpe


def sentence_piece_like(size):
    """As Llama 2 and Gemma: a prefix space, ▁ for spaces, bytes for unknown characters, and a BOS."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([TEXTS[0]] * 20, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return bpe


def _paired(one, two, text):
    a, b = one.encode(text), two.encode(text)
    return a, b, pair_positions(a.offsets, b.offsets)


def test_a_text_that_is_cut_alike_is_paired_token_by_token():
    one = byte_level(300)
    a, _, found = _paired(one, one, TEXTS[0])
    assert found.source.tolist() == found.target.tolist() == list(range(len(a.ids)))
    assert found.source_coverage == found.target_coverage == 1.0


def test_every_pair_has_read_the_same_text_whatever_the_tokenizers():
    for text in TEXTS:
        a, b, found = _paired(byte_level(300), sentence_piece_like(320), text)
        assert found.source.numel() > 0
        for s, t in zip(found.source.tolist(), found.target.tolist(), strict=True):
            assert a.offsets[s][1] == b.offsets[t][1]
        assert found.source.tolist() == sorted(set(found.source.tolist()))
        assert found.target.tolist() == sorted(set(found.target.tolist()))


def test_special_tokens_are_never_paired():
    two = sentence_piece_like(320)
    _, b, found = _paired(byte_level(300), two, TEXTS[0])
    assert b.tokens[0] == "<s>"
    assert 0 not in found.target.tolist()


def test_of_the_bytes_of_one_character_only_the_last_has_read_it():
    a, b, found = _paired(byte_level(257), sentence_piece_like(320), "🚢x")
    ship = [position for position, (_, end) in enumerate(a.offsets) if end == 1]
    assert len(ship) == 4
    assert found.source.tolist()[0] == ship[-1]
    assert b.offsets[found.target.tolist()[0]][1] == 1


def test_coverage_is_the_share_of_tokens_that_stand_for_text():
    found = pair_positions([(0, 0), (0, 2), (2, 3), (3, 6)], [(0, 3), (3, 6), (0, 0)])
    assert (found.source.tolist(), found.target.tolist()) == ([2, 3], [0, 1])
    assert found.source_coverage == 2 / 3
    assert found.target_coverage == 1.0
    nothing = pair_positions([(0, 0)], [(0, 1)])
    assert (nothing.source.numel(), nothing.source_coverage, nothing.target_coverage) == (0, 0.0, 0.0)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_gives_rising_pairs_with_equal_ends(text):
    a, b, found = _paired(ONE, TWO, text)
    pairs = list(zip(found.source.tolist(), found.target.tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert all(a.offsets[s][1] == b.offsets[t][1] for s, t in pairs)
    assert 0.0 <= found.source_coverage <= 1.0


ONE, TWO = byte_level(300), sentence_piece_like(320)
