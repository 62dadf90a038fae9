"""Serialises one cache entry as a safetensors file in which every byte is verified.

The header has one canonical form; a reader renders it again and rejects any that differs. The header contains
a SHA-256 over the tensors' bytes and its own fields, so truncated, corrupt or foreign entries are detected
and treated as a miss. Tensors are read one by one into newly allocated, aligned memory: there is no second
copy, and a hit has the same memory layout as a fresh computation, which keeps later matrix products
bit-identical.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from rebase.cache.keys import Key, Shapes, parse_key

_METADATA_KEY = "__metadata__"  # safetensors' own key for non-tensor data
_HEADER_KEY = "rebase.cache"
_MAX_HEADER = 16 * 1024  # a real header is under 1 KiB plus the names in its key
_ALIGNMENT = 64


class CorruptEntryError(Exception):
    """The bytes are not a valid entry for the key. Never leaves the cache."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The value stored under one key: named float32 tensors, none of them empty, and named numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def sorted_tensors(self) -> Iterator[Tensor]:
        """The tensors in the order they are written."""
        return (self.tensors[name] for name in sorted(self.tensors))


def normalize_entry(entry: CacheEntry) -> CacheEntry:
    """The same entry as the cache would return it: contiguous float32 on the CPU."""
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in entry.tensors.items()
    }
    return CacheEntry(tensors, {name: float(number) for name, number in entry.numbers.items()})


def compute_entry_size(key: Key, entry: CacheEntry) -> int:
    """Number of bytes that `write_entry` will write."""
    header = _render_header(key, entry.shapes, entry.numbers, "0" * 64)
    return len(header) + sum(4 * tensor.numel() for tensor in entry.tensors.values())


def write_entry(stream: BinaryIO, key: Key, entry: CacheEntry) -> None:
    """Write a normalized entry. Raises what the stream raises."""
    digest = _compute_digest(_render_header(key, entry.shapes, entry.numbers, ""), entry.sorted_tensors)
    stream.write(_render_header(key, entry.shapes, entry.numbers, digest))
    for tensor in entry.sorted_tensors:
        stream.write(_view_bytes(tensor))


def read_entry(stream: BinaryIO, size: int, key: Key) -> CacheEntry:
    """The entry in a stream of `size` bytes. CorruptEntryError unless it is intact and for this key."""
    header, fields = _read_header(stream, size)
    try:
        meta = json.loads(fields.pop(_METADATA_KEY)[_HEADER_KEY])
        shapes = {name: tuple(int(n) for n in facts["shape"]) for name, facts in fields.items()}
        numbers = {name: float(number) for name, number in meta["numbers"].items()}
        digest = str(meta["sha256"])
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as exc:
        raise CorruptEntryError("header lacks the expected fields") from exc
    if header != _render_header(key, shapes, numbers, digest):
        raise CorruptEntryError("header belongs to another entry or is damaged")
    _check_shapes(key, shapes, numbers, size - len(header))
    entry = CacheEntry({name: _read_tensor(stream, shapes[name]) for name in sorted(shapes)}, numbers)
    if stream.read(1):
        raise CorruptEntryError("longer than its header says")
    if _compute_digest(_render_header(key, shapes, numbers, ""), entry.sorted_tensors) != digest:
        raise CorruptEntryError("contents differ from their digest")
    return entry


def read_key(stream: BinaryIO, size: int) -> Key:
    """The key stored in an entry's header, without verifying the data. Raises CorruptEntryError."""
    _, fields = _read_header(stream, size)
    try:
        return parse_key(json.loads(fields[_METADATA_KEY][_HEADER_KEY])["key"])
    except (KeyError, RecursionError, TypeError, ValueError) as exc:
        raise CorruptEntryError("header without a key") from exc


def _render_header(key: Key, shapes: Shapes, numbers: Mapping[str, float], digest: str) -> bytes:
    """Length prefix and JSON, padded with spaces so that the data starts on a 64-byte boundary."""
    number_texts = {name: repr(number) for name, number in numbers.items()}
    meta = {"key": key.fields, "numbers": number_texts, "sha256": digest}
    fields: dict[str, Any] = {_METADATA_KEY: {_HEADER_KEY: _dump_canonical_json(meta)}}
    start = 0
    for name in sorted(shapes):
        end = start + 4 * math.prod(shapes[name])
        fields[name] = {"data_offsets": [start, end], "dtype": "F32", "shape": list(shapes[name])}
        start = end
    text = _dump_canonical_json(fields).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _read_header(stream: BinaryIO, size: int) -> tuple[bytes, dict[str, Any]]:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(_MAX_HEADER, size - 8):
        raise CorruptEntryError("no header, or one of unreasonable length")
    text = stream.read(length)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CorruptEntryError("header is not JSON") from exc
    if len(text) != length or not isinstance(fields, dict):
        raise CorruptEntryError("truncated header")
    return prefix + text, fields


def _check_shapes(key: Key, shapes: Shapes, numbers: Mapping[str, float], data_bytes: int) -> None:
    """Check before allocating anything that the shapes fit the key and add up to the file's size."""
    if any(n < 1 for shape in shapes.values() for n in shape) or not key.fits(shapes, numbers):
        raise CorruptEntryError("shapes do not match this key")
    if 4 * sum(map(math.prod, shapes.values())) != data_bytes:
        raise CorruptEntryError("shapes do not match the size")


def _read_tensor(stream: BinaryIO, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.empty(shape, dtype=torch.float32)
    view, done = _view_bytes(tensor), 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise CorruptEntryError("truncated")
        done += count
    return tensor


def _compute_digest(header: bytes, tensors: Iterable[Tensor]) -> str:
    sha = hashlib.sha256(header)
    for tensor in tensors:
        sha.update(_view_bytes(tensor))
    return sha.hexdigest()


def _view_bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).numpy().data.cast("B")


def _dump_canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
