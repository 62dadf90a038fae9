"""Caches results that depend only on base weights: on disk, then in Redis if configured, else computed.

Truncated SVDs depend on one base model and are reused by every later job on it; alignments depend on two and
are reused by every later adapter between them. Access control is not done here: the pipeline checks that the
job may read the repos before it uses the cache.

A cached rank-320 entry is not sliced to serve a request for rank 128: its leading 128 directions match a
fresh rank-128 computation only up to rounding, so results would depend on what happened to be cached
(decision 0007).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rebase.cache.disk_tier import DiskTier, EntryFile
from rebase.cache.entry import (
    CacheEntry,
    CorruptEntryError,
    compute_entry_size,
    normalize_entry,
    read_entry,
    read_key,
    write_entry,
)
from rebase.cache.keys import FactorKey, Key, PairKey, PoolKey
from rebase.cache.locks import file_lock, redis_lock
from rebase.cache.redis_tier import RedisTier
from rebase.lora.low_rank import Factors


@dataclass(frozen=True, slots=True)
class CacheListing:
    """One entry of the disk tier. `key` is None if the file is unreadable; the next use removes it."""

    key: Key | None
    bytes: int
    last_used: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class PruneResult:
    """Number and size of the entries that `prune` removed."""

    entries: int
    bytes: int


@dataclass(slots=True)
class CacheStats:
    """How often this process's requests hit a tier or had to be computed."""

    disk_hits: int = 0
    redis_hits: int = 0
    computed: int = 0


class FactorCache:
    """Safe to use from several threads, and from processes and machines sharing the folder or Redis."""

    def __init__(
        self,
        dir: Path,
        max_bytes: int,
        redis_url: str | None = None,
        ttl_s: int = 7 * 24 * 3600,
        max_entry_bytes: int = 64 * 2**20,
        *,
        redis_prefix: str = "rebase:factors",
        redis_timeout_s: float = 5.0,
        lease_s: float = 10.0,
        wait_s: float = 900.0,
    ) -> None:
        """`dir` is created on demand. `max_bytes` = 0 disables the disk tier; no `redis_url`, the Redis tier.

        `lease_s`: a machine that does not renew its lock for this long loses it to another one.
        `wait_s`: after waiting this long for another process's result, compute it here too.
        """
        self.stats = CacheStats()
        self._disk = DiskTier(dir, max_bytes)
        self._redis = (
            RedisTier(
                redis_url,
                ttl_s=ttl_s,
                max_entry_bytes=max_entry_bytes,
                prefix=redis_prefix,
                timeout_s=redis_timeout_s,
            )
            if redis_url
            else None
        )
        self._lease_s = lease_s
        self._wait_s = wait_s

    def get_or_compute(self, key: FactorKey, compute: Callable[[], Factors]) -> Factors:
        """The factors for `key`, from the nearest tier that has them. Always contiguous float32 on the CPU.

        Among all who share a tier, normally only one runs `compute` at a time; its errors propagate to that
        caller, and the next one waiting computes. Errors of a tier are never raised.
        """
        entry = self._get_or_compute_entry(key, lambda: _pack_factors(compute()))
        U, S, V = (entry.tensors[name] for name in "USV")
        return Factors(U, S, V, entry.numbers["energy"])

    def get_or_compute_tensors(
        self, key: PairKey | PoolKey, compute: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The same for named tensors of a pair of bases or an anchor pool."""
        return dict(self._get_or_compute_entry(key, lambda: CacheEntry(compute())).tensors)

    def get(self, key: PairKey) -> dict[str, Tensor] | None:
        """Stored tensors, or None. For computations too long for others to wait for."""
        entry = self._look_up(key)
        return None if entry is None else dict(entry.tensors)

    def put(self, key: PairKey, tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors in every tier, overwriting. Errors of a tier are never raised."""
        entry = normalize_entry(CacheEntry(tensors))
        self._write_to_disk(key, entry)
        self._write_to_redis(key, entry)

    def list_entries(self) -> list[CacheListing]:
        """Entries of the disk tier, least recently used first."""
        return [CacheListing(_read_file_key(f), f.bytes, f.last_used) for f in self._disk.list_files()]

    def prune(self, max_bytes: int = 0) -> PruneResult:
        """Remove the least recently used entries until at most `max_bytes` are left on disk.

        Raises OSError if the folder cannot be written. Entries in Redis expire by themselves.
        """
        removed = self._disk.prune(max_bytes)
        return PruneResult(entries=len(removed), bytes=sum(f.bytes for f in removed))

    def _get_or_compute_entry(self, key: Key, compute: Callable[[], CacheEntry]) -> CacheEntry:
        entry = self._look_up(key)
        if entry is not None:
            return entry
        if not self._disk.writable:  # results cannot be shared through the folder, so its lock is useless
            return self._compute_under_redis_lock(key, compute)
        lock = self._disk.folder / "locks" / f"{key.digest}.lock"
        with file_lock(lock, lambda: self._disk.has(key.digest), self._wait_s):
            return self._look_up(key) or self._compute_under_redis_lock(key, compute)

    def _look_up(self, key: Key) -> CacheEntry | None:
        entry = self._disk.get(key.digest, lambda file, size: read_entry(file, size, key))
        if entry is not None:
            self.stats.disk_hits += 1
            return entry
        entry = self._read_from_redis(key)
        if entry is not None:
            self.stats.redis_hits += 1
            self._write_to_disk(key, entry)
        return entry

    def _compute_under_redis_lock(self, key: Key, compute: Callable[[], CacheEntry]) -> CacheEntry:
        tier = self._redis
        if tier is None or not tier.available:
            return self._compute(key, compute)
        with redis_lock(
            tier, key.digest, lambda: tier.has(key.digest), lease_s=self._lease_s, wait_s=self._wait_s
        ):
            return self._look_up(key) or self._compute(key, compute)

    def _compute(self, key: Key, compute: Callable[[], CacheEntry]) -> CacheEntry:
        entry = normalize_entry(compute())
        self.stats.computed += 1
        self._write_to_disk(key, entry)
        self._write_to_redis(key, entry)
        return entry

    def _write_to_disk(self, key: Key, entry: CacheEntry) -> None:
        size = compute_entry_size(key, entry)
        self._disk.put(key.digest, size, lambda file: write_entry(file, key, entry))

    def _write_to_redis(self, key: Key, entry: CacheEntry) -> None:
        if self._redis is None or not self._redis.available:
            return
        if not self._redis.fits(compute_entry_size(key, entry)):
            self._redis.mark_not_shared(key.digest)
            return
        buffer = io.BytesIO()
        write_entry(buffer, key, entry)
        self._redis.put(key.digest, buffer.getvalue())

    def _read_from_redis(self, key: Key) -> CacheEntry | None:
        data = self._redis.get(key.digest) if self._redis else None
        if data is None or self._redis is None:
            return None
        try:
            return read_entry(io.BytesIO(data), len(data), key)
        except CorruptEntryError:
            self._redis.remove(key.digest)
            return None


def _pack_factors(factors: Factors) -> CacheEntry:
    return CacheEntry({"U": factors.U, "S": factors.S, "V": factors.V}, {"energy": factors.energy})


def _read_file_key(file: EntryFile) -> Key | None:
    try:
        with file.path.open("rb") as stream:
            return read_key(stream, file.bytes)
    except (OSError, CorruptEntryError):
        return None
