"""The bytes of one entry."""

from __future__ import annotations

import io
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from rebase.cache.entry import (
    CacheEntry,
    CorruptEntryError,
    compute_entry_size,
    normalize_entry,
    read_entry,
    read_key,
    write_entry,
)
from rebase.cache.keys import FactorKey, Key, PairKey
from rebase.lora.low_rank import Factors
from support.cache_processes import KEY, factors, same

PAIR = PairKey("acme/old", "a" * 40, "0.q_proj", "acme/new", "b" * 40, "1.q_proj", "map v1", "c" * 64)


def packed(value: Factors) -> CacheEntry:
    return CacheEntry({"U": value.U, "S": value.S, "V": value.V}, {"energy": value.energy})


def unpacked(entry: CacheEntry) -> Factors:
    U, S, V = (entry.tensors[name] for name in "USV")
    return Factors(U, S, V, entry.numbers["energy"])


def encoded(key: Key, entry: CacheEntry) -> bytes:
    buffer = io.BytesIO()
    write_entry(buffer, key, entry)
    return buffer.getvalue()


def written(key: FactorKey = KEY, value: Factors | None = None) -> bytes:
    return encoded(key, packed(value or factors(key.rank)))


def read(data: bytes, key: FactorKey = KEY) -> Factors:
    return unpacked(read_entry(io.BytesIO(data), len(data), key))


GOOD = written()


def test_an_entry_comes_back_bit_for_bit() -> None:
    assert same(read(GOOD), factors())


def test_the_same_factors_give_the_same_bytes_and_their_size_is_known_before() -> None:
    assert written() == GOOD
    assert compute_entry_size(KEY, packed(factors())) == len(GOOD)


def test_an_entry_is_an_ordinary_safetensors_file_with_aligned_data() -> None:
    tensors = load(GOOD)
    assert set(tensors) == {"U", "S", "V"}
    assert torch.equal(tensors["U"], factors().U)
    assert (8 + int.from_bytes(GOOD[:8], "little")) % 64 == 0


def test_an_entry_says_which_key_it_belongs_to() -> None:
    assert read_key(io.BytesIO(GOOD), len(GOOD)) == KEY


def test_factors_are_settled_to_contiguous_float32() -> None:
    value = factors()
    odd = Factors(U=value.U.T.contiguous().T, S=value.S.double(), V=value.V, energy=value.energy)
    assert same(unpacked(normalize_entry(packed(odd))), value)


def test_a_rank_clipped_to_the_matrix_is_kept() -> None:
    key = FactorKey("acme/base", "a" * 40, "w", 320, 1)
    assert same(read(written(key, factors(rank=5)), key), factors(rank=5))


@given(at=st.integers(0, len(GOOD) - 1), flip=st.integers(1, 255))
def test_flipping_any_byte_makes_the_entry_corrupt(at: int, flip: int) -> None:
    with pytest.raises(CorruptEntryError):
        read(GOOD[:at] + bytes([GOOD[at] ^ flip]) + GOOD[at + 1 :])


def test_each_single_byte_is_covered() -> None:
    for at in range(len(GOOD)):
        with pytest.raises(CorruptEntryError):
            read(GOOD[:at] + bytes([GOOD[at] ^ 1]) + GOOD[at + 1 :])


def test_an_entry_cut_at_any_length_is_corrupt() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(CorruptEntryError):
            read(GOOD[:length])


def test_an_entry_that_was_cut_after_its_size_was_taken_is_corrupt() -> None:
    with pytest.raises(CorruptEntryError):
        read_entry(io.BytesIO(GOOD[:-1]), len(GOOD), KEY)


def test_an_entry_with_something_behind_it_is_corrupt() -> None:
    with pytest.raises(CorruptEntryError):
        read(GOOD + b"\0")
    with pytest.raises(CorruptEntryError):
        read_entry(io.BytesIO(GOOD + b"\0"), len(GOOD), KEY)


@pytest.mark.parametrize("field", ["repo_id", "sha", "tensor", "rank", "version"])
def test_an_entry_of_another_key_is_refused(field: str) -> None:
    other = {**KEY.__dict__, field: 3 if isinstance(getattr(KEY, field), int) else "other"}
    fields = {name: other[name] for name in ("repo_id", "sha", "tensor", "rank", "version")}
    with pytest.raises(CorruptEntryError):
        read(GOOD, FactorKey(**fields))


@given(data=st.binary(max_size=200))
def test_noise_is_corrupt_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(CorruptEntryError):
        read(data)
    with pytest.raises(CorruptEntryError):
        read(len(data).to_bytes(8, "little") + data)


def test_a_header_of_a_million_brackets_is_corrupt_and_nothing_worse() -> None:
    header = b"[" * 15_000
    with pytest.raises(CorruptEntryError):
        read(len(header).to_bytes(8, "little") + header)


def test_a_header_that_promises_more_than_the_file_holds_allocates_nothing() -> None:
    huge = Factors(
        U=torch.empty(1, 4).expand(10**7, 4),
        S=torch.empty(4),
        V=torch.empty(1, 4).expand(10**7, 4),
        energy=1.0,
    )
    from rebase.cache import entry

    header = entry._render_header(KEY, packed(huge).shapes, {"energy": 1.0}, "0" * 64)
    with pytest.raises(CorruptEntryError, match="size"):
        read(header + b"\0" * 100)


def test_an_energy_that_is_not_finite_survives_the_trip() -> None:
    value = factors()
    strange = Factors(U=value.U, S=value.S, V=value.V, energy=math.inf)
    assert read(written(value=strange)).energy == math.inf


def test_a_pairs_tensors_come_back_bit_for_bit_under_their_names() -> None:
    tensors = {"rotation": torch.randn(3, 5), "measured": torch.tensor([0.1, 7.0])}
    data = encoded(PAIR, CacheEntry(tensors))
    found = read_entry(io.BytesIO(data), len(data), PAIR)
    assert set(found.tensors) == set(tensors)
    assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)
    assert read_key(io.BytesIO(data), len(data)) == PAIR


@pytest.mark.parametrize("field", [f.name for f in fields(PAIR)])
def test_a_pairs_entry_under_another_pairs_key_is_refused(field: str) -> None:
    data = encoded(PAIR, CacheEntry({"rotation": torch.ones(2, 2)}))
    other = replace(PAIR, **{field: "other"})
    assert other.digest != PAIR.digest
    with pytest.raises(CorruptEntryError):
        read_entry(io.BytesIO(data), len(data), other)


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        (KEY, CacheEntry({"rotation": torch.ones(2, 2)})),
        (KEY, CacheEntry(packed(factors()).tensors)),
        (KEY, packed(factors(rank=5))),
        (KEY, CacheEntry({**packed(factors()).tensors, "S": torch.ones(3)}, {"energy": 1.0})),
        (KEY, CacheEntry({**packed(factors()).tensors, "S": torch.ones(4, 1)}, {"energy": 1.0})),
        (PAIR, CacheEntry({})),
        (PAIR, packed(factors())),
    ],
    ids=["names", "no energy", "rank", "short S", "flat S", "nothing", "numbers"],
)
def test_contents_that_their_key_cannot_have_are_refused(key: Key, entry: CacheEntry) -> None:
    data = encoded(key, entry)
    with pytest.raises(CorruptEntryError, match="do not match this key"):
        read_entry(io.BytesIO(data), len(data), key)


@pytest.mark.parametrize("shape", ["[Infinity]", "[1e400]", '["a"]', "7", "null"])
def test_a_shape_that_is_no_shape_is_corrupt_and_nothing_worse(shape: str) -> None:
    text = GOOD[8:].split(b"  ")[0].split(b'"shape":')
    header = b'"shape":'.join([text[0], shape.encode() + text[1][text[1].index(b"]") + 1 :], *text[2:]])
    with pytest.raises(CorruptEntryError):
        read(len(header).to_bytes(8, "little") + header + b"\0" * 200)


def test_a_digest_is_the_same_in_every_process_and_differs_with_every_field() -> None:
    assert KEY.digest == FactorKey(KEY.repo_id, KEY.sha, KEY.tensor, KEY.rank, KEY.version).digest
    others = {
        KEY.digest,
        FactorKey("acme/base2", KEY.sha, KEY.tensor, 4, 1).digest,
        FactorKey("acme/base", "b" * 40, KEY.tensor, 4, 1).digest,
        FactorKey("acme/base", KEY.sha, "w", 4, 1).digest,
        FactorKey("acme/base", KEY.sha, KEY.tensor, 5, 1).digest,
        FactorKey("acme/base", KEY.sha, KEY.tensor, 4, 2).digest,
    }
    assert len(others) == 6
