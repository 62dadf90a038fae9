"""A safetensors file from a stranger is read correctly or refused by name."""

from __future__ import annotations

import json
import resource
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rebase.errors import UnsafeFile, UnsupportedModel
from rebase.hub.files import FileSource
from rebase.models.safetensors_file import SafetensorsFile
from rebase.models.safetensors_header import MAX_TENSORS
from support.safetensors_files import BytesSource, entry, file_bytes, write_tensors


def opened(content: bytes, max_tensors: int = MAX_TENSORS) -> SafetensorsFile:
    return SafetensorsFile(BytesSource(content), "model.safetensors", max_tensors=max_tensors)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool],
)
def test_every_dtype_comes_back_as_the_format_s_own_library_wrote_it(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {"a": torch.arange(12).reshape(3, 4).to(dtype), "b": torch.ones(5).to(dtype)}
    path = write_tensors(tmp_path / "m.safetensors", tensors)
    file = SafetensorsFile(FileSource(path, "m"), "m")
    assert {name: info.shape for name, info in file.infos().items()} == {"a": (3, 4), "b": (5,)}
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
    assert torch.equal(file.read_rows("a", 1, 3), tensors["a"][1:3])


def test_scalars_and_empty_tensors_are_read() -> None:
    content = save({"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "x": torch.ones(2)})
    file = opened(content)
    assert file.read("scalar").item() == 2.5
    assert file.read("empty").shape == (0, 4)
    assert file.read_rows("empty", 0, 0).shape == (0, 4)


def test_reading_rows_reads_only_their_bytes() -> None:
    source = BytesSource(save({"w": torch.randn(1000, 64)}))
    file = SafetensorsFile(source, "m")
    file.infos()
    before = source.bytes_read
    file.read_rows("w", 10, 20)
    assert source.bytes_read - before == 10 * 64 * 4


def test_a_tensor_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.safetensors", {"w": torch.ones(4)})
    file = SafetensorsFile(FileSource(path, "m"), "m")
    file.read("w").mul_(0)
    assert file.read("w").sum().item() == 4


def test_rows_outside_the_matrix_and_unknown_names_are_refused() -> None:
    file = opened(save({"w": torch.ones(3, 2), "v": torch.ones(3)}))
    with pytest.raises(IndexError):
        file.read_rows("w", 2, 4)
    with pytest.raises(UnsafeFile, match="has no tensor 'nope'"):
        file.read("nope")
    with pytest.raises(UnsafeFile, match="expected a matrix"):
        file.read_rows("v", 0, 1)


def test_a_quantised_tensor_is_listed_but_its_reading_is_refused_with_advice() -> None:
    file = opened(file_bytes({"w": entry([4], 0, 4, "F8_E8M0")}, bytes(4)))
    assert file.infos()["w"].dtype == "F8_E8M0"
    with pytest.raises(UnsupportedModel, match="F8_E8M0") as caught:
        file.read("w")
    assert "unquantized" in (caught.value.hint or "")


GOOD = entry([2], 0, 8)
BAD = {
    "an empty file": (b"", "too few"),
    "half a length": (b"\x10\0\0", "too few"),
    "a header longer than the file": (file_bytes({"w": GOOD}, bytes(8), length=10_000), "the file has"),
    "a header beyond the format's limit": (file_bytes({}, length=2**63), "the format allows"),
    "text that is not JSON": (file_bytes(b"{nonsense}"), "not JSON"),
    "a list instead of an object": (file_bytes(b"[1]"), "not a JSON object"),
    "blanks before the object": (file_bytes(b"  {}"), "not a JSON object"),
    "bytes that are not UTF-8": (file_bytes(b'{"\xff": 1}'), "UTF-8"),
    "bottomless nesting": (file_bytes(b'{"a":' + b"[" * 200_000), "nested too deeply"),
    "a number without end": (file_bytes(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "NaN in the header": (file_bytes(b'{"a": NaN}'), "NaN"),
    "half a character": (file_bytes(b'{"\\ud800": {}}'), "unpaired surrogate"),
    "the same tensor twice": (
        file_bytes(
            b'{"w":' + json.dumps(GOOD).encode() + b',"w":' + json.dumps(GOOD).encode() + b"}", bytes(8)
        ),
        "the key 'w' twice",
    ),
    "a key twice inside a tensor": (
        file_bytes(b'{"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "the key 'dtype' twice",
    ),
    "metadata that is no map": (file_bytes({"__metadata__": [1]}), "__metadata__"),
    "metadata that is not text": (file_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "a tensor without a shape": (file_bytes({"w": {"dtype": "F32", "data_offsets": [0, 8]}}), "tensor 'w'"),
    "a tensor that is a number": (file_bytes({"w": 3}), "tensor 'w'"),
    "an unknown dtype": (file_bytes({"w": entry([2], 0, 8, "F31")}, bytes(8)), "unknown dtype 'F31'"),
    "a dtype that is a list": (file_bytes({"w": {**GOOD, "dtype": ["F32"]}}, bytes(8)), "unknown dtype"),
    "a negative size": (file_bytes({"w": entry([-2], 0, 8)}, bytes(8)), "non-negative integers"),
    "a size that is true": (file_bytes({"w": entry([True], 0, 4)}, bytes(4)), "non-negative integers"),
    "a size that is a fraction": (
        file_bytes({"w": {**GOOD, "shape": [2.0]}}, bytes(8)),
        "non-negative integers",
    ),
    "too many dimensions": (file_bytes({"w": entry([1] * 99, 0, 4)}, bytes(4)), "short list"),
    "an absurd shape beside a zero": (
        file_bytes({"w": entry([0, 2**62, 2**62], 0, 0)}),
        "unreasonably large",
    ),
    "offsets that descend": (file_bytes({"w": entry([2], 8, 0)}, bytes(8)), "ascending"),
    "three offsets": (file_bytes({"w": {**GOOD, "data_offsets": [0, 4, 8]}}, bytes(8)), "two ascending"),
    "a span that does not fit the shape": (file_bytes({"w": entry([3], 0, 8)}, bytes(8)), "takes 12 bytes"),
    "two tensors that overlap": (
        file_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        "tensor 'b': its data overlaps",
    ),
    "a hole between tensors": (
        file_bytes({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)),
        "tensor 'b': its data leaves a gap",
    ),
    "a hole at the start": (file_bytes({"w": entry([2], 4, 12)}, bytes(12)), "leaves a gap"),
    "bytes after the last tensor": (file_bytes({"w": GOOD}, bytes(9)), "after the last tensor"),
    "data that ends too early": (file_bytes({"w": GOOD}, bytes(7)), "truncated"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_lying_or_broken_file_is_refused_by_name(name: str) -> None:
    content, reason = BAD[name]
    with pytest.raises(UnsafeFile, match=r"model\.safetensors") as caught:
        opened(content).infos()
    assert reason in caught.value.message
    assert caught.value.hint


def test_a_million_tensors_are_refused_before_they_become_objects() -> None:
    one = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    content = file_bytes(b"{" + b",".join(one % number for number in range(1_000_001)) + b"}")
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeFile, match="about 1000001 tensors; at most 1000000 are allowed"):
            opened(content).infos()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * len(content)  # one copy of the header's bytes and nothing else


def test_the_limit_on_tensors_is_exact() -> None:
    header = {f"t{number}": entry([0], 0, 0) for number in range(5)}
    assert len(opened(file_bytes(header), max_tensors=5).infos()) == 5
    with pytest.raises(UnsafeFile, match="about 5 tensors; at most 4 are allowed"):
        opened(file_bytes(header), max_tensors=4).infos()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    each, count = 16 * 2**20, 40
    header = {f"t{i}": entry([each], i * each, (i + 1) * each, "U8") for i in range(count)}
    path = tmp_path / "large.safetensors"
    path.write_bytes(file_bytes(header))
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + each * count)  # a sparse file of 640 MiB
    file = SafetensorsFile(FileSource(path, "large"), "large")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in file.infos():
        assert file.read(name).numel() == each
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 4 * each / 1024


def test_a_file_that_is_cut_while_it_is_open_is_refused(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.safetensors", {"w": torch.ones(1000)})
    file = SafetensorsFile(FileSource(path, "'m.safetensors' of acme/x"), "m")
    file.infos()
    with path.open("r+b") as stream:
        stream.truncate(500)
    with pytest.raises(UnsafeFile, match="was shortened"):
        file.read("w")


NUMBERS = st.one_of(st.integers(-2, 40), st.just(2**63), st.floats(), st.booleans(), st.none())
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I8", "F4", "f32", "", None, 3]),
            "shape": st.lists(NUMBERS, max_size=3),
            "data_offsets": st.lists(NUMBERS, max_size=3),
        }
    ),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), NUMBERS),
    NUMBERS,
)


def survives(content: bytes) -> None:
    """Either every announced tensor reads with the announced shape, or UnsafeFile; nothing else may come
    out.
    """
    try:
        file = opened(content, max_tensors=50)
        for name, info in file.infos().items():
            try:
                assert tuple(file.read(name).shape) == info.shape
            except UnsupportedModel:
                assert info.dtype.startswith(("F4", "F6", "F8"))
    except UnsafeFile:
        pass


@settings(max_examples=400, deadline=None)
@given(
    header=st.dictionaries(st.one_of(st.text(max_size=4), st.just("__metadata__")), ENTRIES, max_size=4),
    data=st.binary(max_size=40),
    length=st.one_of(st.none(), st.integers(0, 300)),
)
def test_any_header_reads_correctly_or_is_unsafe(
    header: dict[str, object], data: bytes, length: int | None
) -> None:
    survives(file_bytes(header, data, length=length))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_unsafe_or_read(content: bytes) -> None:
    survives(content)
    survives(file_bytes(content))


HONEST = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(HONEST) - 1), st.integers(0, 255), st.integers(0, len(HONEST)))
def test_a_flipped_or_cut_honest_file_is_unsafe_or_read(position: int, value: int, cut: int) -> None:
    survives(HONEST[:position] + bytes([value]) + HONEST[position + 1 :])
    survives(HONEST[:cut])


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
            lambda key: key != "__metadata__"
        ),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=5,
    )
)
def test_whatever_the_format_s_library_writes_is_read_back(
    plan: dict[str, tuple[torch.dtype, list[int]]],
) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in plan.items()}
    file = opened(save(tensors))
    assert set(file.infos()) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
