"""Strict parsing of untrusted JSON files and safetensors headers.

A file is: 8 bytes little-endian header length n, n bytes of JSON {name: {dtype, shape, data_offsets}}, then
the data. The header is untrusted, so all of it is validated against the file: lengths, dtypes, contiguous
spans that end where the file ends, unique names, a plausible number of tensors. We parse it ourselves because
the format's own library accepts duplicate names.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from rebase.errors import HubUnavailable, UnsafeFile
from rebase.hub.base import ByteSource

# The first line of the small text file that Git keeps in place of one in large file storage.
# Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"


def make_pointer_error(name: str) -> UnsafeFile:
    """The error for a Git LFS pointer in place of the file called `name`."""
    return UnsafeFile(
        f"{name} is a Git LFS pointer, not the file itself: the repo was cloned without its large files.",
        hint="Run `git lfs install` and `git lfs pull` in the clone, or download the repo with "
        "`hf download`; if the pointer itself was uploaded, upload the file in its place.",
    )


class InvalidJson(ValueError):
    """The text is not acceptable JSON; the message briefly says why."""


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises InvalidJson."""
    try:
        text = raw.decode("utf-8-sig")  # editors on Windows put a byte order mark at the start
        value = json.loads(text, object_pairs_hook=_reject_duplicate_keys, parse_constant=_reject_constant)
    except UnicodeDecodeError as exc:
        raise InvalidJson("it is not UTF-8") from exc
    except RecursionError as exc:
        raise InvalidJson("it is nested too deeply") from exc
    except InvalidJson:
        raise
    except ValueError as exc:  # includes numbers with thousands of digits
        raise InvalidJson("it is not JSON") from exc
    if not isinstance(value, dict):
        raise InvalidJson("it is not a JSON object")
    return value


def load_json_object(path: Path, name: str, *, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file, called `name` in errors. Raises UnsafeFile if it is too large, invalid or a
    Git LFS pointer, HubUnavailable if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as exc:
        raise HubUnavailable(f"{name} cannot be read.") from exc
    if len(raw) > max_bytes:
        raise UnsafeFile(f"{name} is larger than the limit of {max_bytes} bytes.")
    if raw.startswith(LFS_POINTER):
        raise make_pointer_error(name)
    try:
        return parse_json_object(raw)
    except InvalidJson as exc:
        raise UnsafeFile(
            f"{name} cannot be used: {exc}.", hint="Correct the file and upload it again."
        ) from exc


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of the pairs; their keys must be unique and encodable as UTF-8."""
    result = dict(pairs)
    if len(result) != len(pairs):
        duplicate, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidJson(f"it contains the key {duplicate[:200]!r} twice")
    if not all(key.isascii() or _is_encodable(key) for key in result):
        raise InvalidJson("a key contains an unpaired surrogate")
    return result


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _reject_constant(constant: str) -> NoReturn:
    raise InvalidJson(f"{constant} is not JSON")


MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_TENSORS = 1_000_000
MAX_ADAPTER_TENSORS = 100_000  # 100 layers × 7 modules × 2 factors is 1,400
MAX_DIMENSIONS = 16
_MAX_ELEMENTS = 2**63 - 1

# Bits per element of every dtype in the format, and the torch dtype of those that we read.
_DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """One tensor of the header. `begin` and `end` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(source: ByteSource, name: str, *, max_tensors: int = MAX_TENSORS) -> dict[str, TensorSpan]:
    """Every tensor of the file, in file order. Raises UnsafeFile naming the file and tensor."""
    if source.size < 8:
        raise _make_unsafe_error(name, f"it has {source.size} bytes, too few for a safetensors file")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER_BYTES and source.read(0, min(len(LFS_POINTER), source.size)) == LFS_POINTER:
        raise make_pointer_error(name)
    if length > MAX_HEADER_BYTES:
        raise _make_unsafe_error(
            name, f"its header length is {length} bytes; the format allows {MAX_HEADER_BYTES}"
        )
    if 8 + length > source.size:
        raise _make_unsafe_error(name, f"its header length is {length} bytes, but the file has {source.size}")
    raw = source.read(8, length)
    if not raw.startswith(b"{"):
        raise _make_unsafe_error(name, "its header is not a JSON object")
    # Each tensor needs its own brace, so this bounds their number before any object is created.
    if (count := raw.count(b"{") - 1) > max_tensors:
        raise _make_unsafe_error(
            name, (f"its header lists about {count} tensors; at most {max_tensors} are allowed")
        )
    try:
        header = parse_json_object(raw)
    except InvalidJson as exc:
        raise _make_unsafe_error(name, f"its header is not valid: {exc}") from exc
    _check_metadata(header.pop("__metadata__", {}), name)
    spans = {key: _parse_span(key, value, 8 + length, name) for key, value in header.items()}
    return _check_contiguous(spans, 8 + length, source.size, name)


def _parse_span(key: str, value: Any, data_start: int, name: str) -> TensorSpan:
    """Validate one tensor's header entry. `data`: offset at which the file's data begins."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _make_unsafe_error(
            name, ("its entry must have dtype, shape and data_offsets and nothing else"), key
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise _make_unsafe_error(name, f"unknown dtype {str(dtype)[:40]!r}", key)
    if not _is_uint_list(shape) or len(shape) > MAX_DIMENSIONS:
        raise _make_unsafe_error(name, "its shape is not a short list of non-negative integers", key)
    if math.prod(max(size, 1) for size in shape) > _MAX_ELEMENTS:
        raise _make_unsafe_error(name, "its shape is unreasonably large", key)
    if not _is_uint_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _make_unsafe_error(name, "its data_offsets are not two ascending non-negative integers", key)
    bits = math.prod(shape) * _DTYPE_BITS[dtype]
    num_bytes = offsets[1] - offsets[0]
    if bits != num_bytes * 8:
        raise _make_unsafe_error(
            name,
            (f"shape {shape} of {dtype} takes {bits / 8:.10g} bytes, but its offsets span {num_bytes}"),
            key,
        )
    return TensorSpan(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _is_uint_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_metadata(value: Any, name: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _make_unsafe_error(name, "its __metadata__ is not an object of strings")


def _check_contiguous(
    spans: dict[str, TensorSpan], data_start: int, size: int, name: str
) -> dict[str, TensorSpan]:
    """The entries in file order; their data must cover the rest of the file exactly once."""
    position = data_start
    ordered = dict(sorted(spans.items(), key=lambda item: (item[1].begin, item[1].end, item[0])))
    for key, span in ordered.items():
        if span.begin != position:
            defect = "overlaps the tensor before it" if span.begin < position else "leaves a gap before it"
            raise _make_unsafe_error(name, f"its data {defect}", key)
        position = span.end
    if position > size:
        raise _make_unsafe_error(
            name, (f"it is truncated: its header describes {position} bytes, but it has {size}")
        )
    if position < size:
        raise _make_unsafe_error(name, f"it has {size - position} byte(s) after the last tensor")
    return ordered


def _make_unsafe_error(name: str, problem: str, tensor: str | None = None) -> UnsafeFile:
    location = f", tensor '{tensor[:200]}'" if tensor is not None else ""
    return UnsafeFile(
        f"{name} is invalid{location}: {problem}.",
        hint="Download or upload the file again, or save it again with safetensors.",
    )
