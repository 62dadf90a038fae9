"""What the cache tests run in processes of their own. Kept out of the test files so that a fork server
can import it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import FactorKey
from rebase.lora.low_rank import Factors

KEY = FactorKey("acme/base", "a" * 40, "model.layers.0.self_attn.q_proj.weight", 4, 1)

# One clean process has imported torch; every test process is a fork of that one.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["rebase.cache.factor_cache"])


def factors(rank: int = 4, o: int = 6, i: int = 5, seed: int = 0) -> Factors:
    """Some factors; the cache does not care whether they factorize anything."""
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        U=torch.randn(o, rank, generator=generator),
        S=torch.rand(rank, generator=generator).sort(descending=True).values,
        V=torch.randn(i, rank, generator=generator),
        energy=0.9371,
    )


def same(a: Factors, b: Factors) -> bool:
    """Equal to the last bit."""
    return a.energy == b.energy and all(
        torch.equal(getattr(a, n), getattr(b, n)) and getattr(a, n).stride() == getattr(b, n).stride()
        for n in "USV"
    )


@dataclass(frozen=True)
class Place:
    """One machine's view of the cache, and the files in which processes note what they do."""

    folder: Path
    notes: Path
    redis_url: str | None = None
    prefix: str = ""
    lease_s: float = 10.0

    def cache(self) -> FactorCache:
        return FactorCache(
            self.folder, 10**9, self.redis_url, redis_prefix=self.prefix, lease_s=self.lease_s, wait_s=60
        )

    def note(self, word: str) -> None:
        with (self.notes / word).open("a") as file:
            file.write(f"{os.getpid()}\n")

    def noted(self, word: str) -> list[int]:
        path = self.notes / word
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def want(place: Place, seconds: float) -> None:
    """Ask for the factors; computing them takes `seconds`. Notes the start of a computation, and a good
    answer.
    """

    def compute() -> Factors:
        place.note("computing")
        time.sleep(seconds)
        return factors()

    if same(place.cache().get_or_compute(KEY, compute), factors()):
        place.note("served")


def peak_of_reading(place: Place, key: FactorKey) -> None:
    """Note by how many MiB the peak memory of this process grows when it reads an entry."""
    place.cache().get_or_compute(KEY, factors)  # whatever is loaded lazily, is loaded now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    place.cache().get_or_compute(key, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    (place.notes / "grown").write_text(str(grown // 1024))
