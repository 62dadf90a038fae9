"""One cache entry as bytes: a safetensors file whose every byte is accounted for.

The header is written in one canonical spelling, and a reader renders it again and compares: a header that
differs in any byte is refused. The tensors' bytes and the header's own facts are covered by a SHA-256
that the header carries. So a truncated, damaged or foreign entry can be told from a good one, and the
caller treats it as a miss. Tensors are read one by one into fresh, aligned memory: no second copy is
held, and a hit has the same memory layout as a fresh computation, which keeps later matrix products
bit-equal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from transfer.interface import Factors
from workers.cache.keys import FactorKey

_META = "rebase.factors"
_MAX_HEADER = 16 * 1024  # a real header is under 1 KiB plus the tensor's name
_ALIGN = 64
_NAMES = ("S", "U", "V")


class CorruptEntryError(Exception):
    """The bytes are not the entry that the key names. Never leaves the cache."""


def settle(factors: Factors) -> Factors:
    """The same factors as the cache would give them back: contiguous float32 on the CPU."""
    U, S, V = (t.detach().to("cpu", torch.float32).contiguous() for t in (factors.U, factors.S, factors.V))
    return Factors(U=U, S=S, V=V, energy=float(factors.energy))


def entry_size(key: FactorKey, factors: Factors) -> int:
    """Bytes that `write_entry` will write."""
    return len(_header(key, _shapes_of(factors), factors.energy, "0" * 64)) + sum(
        t.numel() * 4 for t in _tensors(factors)
    )


def write_entry(stream: BinaryIO, key: FactorKey, factors: Factors) -> None:
    """Write settled factors. Raises what the stream raises."""
    shapes = _shapes_of(factors)
    digest = _digest(_header(key, shapes, factors.energy, ""), _tensors(factors))
    stream.write(_header(key, shapes, factors.energy, digest))
    for tensor in _tensors(factors):
        stream.write(_bytes_of(tensor))


def read_entry(stream: BinaryIO, size: int, key: FactorKey) -> Factors:
    """The factors in a stream of `size` bytes. Raises CorruptEntryError unless every byte is as written
    for this key.
    """
    header, fields = _read_header(stream, size)
    try:
        shapes = {name: tuple(int(n) for n in fields[name]["shape"]) for name in _NAMES}
        meta = json.loads(fields["__metadata__"][_META])
        energy, digest = float(meta["energy"]), str(meta["sha256"])
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptEntryError("header without the expected fields") from exc
    if header != _header(key, shapes, energy, digest):
        raise CorruptEntryError("header of another entry, or damaged")
    _check_shapes(shapes, key.rank, size - len(header))
    tensors = {name: _read_tensor(stream, shapes[name]) for name in _NAMES}
    if stream.read(1):
        raise CorruptEntryError("longer than it says")
    found = _digest(_header(key, shapes, energy, ""), (tensors[name] for name in _NAMES))
    if found != digest:
        raise CorruptEntryError("contents differ from their digest")
    return Factors(U=tensors["U"], S=tensors["S"], V=tensors["V"], energy=energy)


def read_key(stream: BinaryIO, size: int) -> FactorKey:
    """The key that an entry says it belongs to, from its header alone. Raises CorruptEntryError."""
    _, fields = _read_header(stream, size)
    try:
        return FactorKey(**json.loads(fields["__metadata__"][_META])["key"])
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptEntryError("header without a key") from exc


def _header(key: FactorKey, shapes: dict[str, tuple[int, ...]], energy: float, digest: str) -> bytes:
    """Length prefix and JSON, padded with spaces so that the data starts on a 64-byte boundary."""
    meta = {"energy": repr(energy), "key": json.loads(key.canonical), "sha256": digest}
    fields: dict[str, Any] = {"__metadata__": {_META: _dumps(meta)}}
    start = 0
    for name in _NAMES:
        end = start + 4 * math.prod(shapes[name])
        fields[name] = {"data_offsets": [start, end], "dtype": "F32", "shape": list(shapes[name])}
        start = end
    text = _dumps(fields).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def _read_header(stream: BinaryIO, size: int) -> tuple[bytes, dict[str, Any]]:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(_MAX_HEADER, size - 8):
        raise CorruptEntryError("no header, or one of absurd length")
    text = stream.read(length)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise CorruptEntryError("header is not JSON") from exc
    if len(text) != length or not isinstance(fields, dict):
        raise CorruptEntryError("truncated header")
    return prefix + text, fields


def _check_shapes(shapes: dict[str, tuple[int, ...]], rank: int, data: int) -> None:
    """Refuse before anything is allocated: shapes must agree with each other, the rank and the file's
    size.
    """
    try:
        (k,), (o, k_u), (i, k_v) = shapes["S"], shapes["U"], shapes["V"]
    except ValueError as exc:
        raise CorruptEntryError("wrong number of dimensions") from exc
    if not (0 < k == k_u == k_v <= rank) or min(o, i) < k or 4 * k * (1 + o + i) != data:
        raise CorruptEntryError("shapes do not fit the rank or the size")


def _read_tensor(stream: BinaryIO, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.empty(shape, dtype=torch.float32)
    view, done = _bytes_of(tensor), 0
    while done < len(view):
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise CorruptEntryError("truncated")
        done += got
    return tensor


def _digest(header: bytes, tensors: Iterator[Tensor]) -> str:
    sha = hashlib.sha256(header)
    for tensor in tensors:
        sha.update(_bytes_of(tensor))
    return sha.hexdigest()


def _tensors(factors: Factors) -> Iterator[Tensor]:
    yield from (factors.S, factors.U, factors.V)


def _shapes_of(factors: Factors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in zip(_NAMES, _tensors(factors), strict=True)}


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).numpy().data.cast("B")


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
