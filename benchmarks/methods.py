"""Time and memory of every method on one site, against `copy`, the floor. `make bench NAME=methods`.

Each row is a process of its own: the site's two weights are made, and where a method wants factors they are
computed first and kept, as the cache would, so that `carry` alone is timed. `peak` is memory beyond what
stood before `carry`, as a multiple of one dense float32 weight (the libraries' own start-up included).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from rebase.lora.linalg import factorize
from rebase.lora.low_rank import Factors, LowRank, Role, Side, Site
from rebase.methods.base import BasePairInfo, Kernels, Port, SitePair, Space
from rebase.methods.params import parse_params
from rebase.methods.pool_kernel import gram, site_kernel
from rebase.methods.registry import get_method

METHODS: Final[dict[str, dict[str, Any]]] = {
    "copy": {"name": "copy"},
    "linear": {"name": "linear"},
    "difference": {"name": "difference"},
    "weight_average": {"name": "weight_average"},
    "ties": {"name": "ties"},
    "prolora": {"name": "prolora"},
    "cross_lora projection": {"name": "cross_lora", "alignment": "projection"},
    "cross_lora anchored": {"name": "cross_lora", "alignment": "anchored"},
    "anchor_ridge": {"name": "anchor_ridge"},
}
SHAPES: Final = {"q_proj": (1536, 1536), "up_proj": (8960, 1536)}  # a 1.5B model
_RANK: Final = 16
_ANCHORS: Final = 4096
_REPEATS: Final = 3
_POOL: Final = 16


@dataclass
class _Evidence:
    """One site's evidence in memory; factors are remembered, alignments are not."""

    weights: dict[Side, Tensor]
    rows: dict[tuple[Side, Port], Tensor]
    pool: list[LowRank] = field(default_factory=list)
    known: dict[tuple[Side, int], Factors] = field(default_factory=dict)

    def weight(self, side: Side) -> Tensor:
        return self.weights[side]

    def anchor_updates(self) -> list[LowRank]:
        return self.pool

    def factors(self, side: Side, rank: int) -> Factors:
        if (side, rank) not in self.known:
            self.known[side, rank] = factorize(self.weights[side], rank)
        return self.known[side, rank]

    def embedding_rows(self, side: Side, port: Port) -> Tensor:
        return self.rows[side, port]

    def cached_by_site(self, entry_name: str, compute: Any) -> dict[str, Tensor]:
        made: dict[str, Tensor] = compute()
        return made


@dataclass(frozen=True)
class _Pool:
    """Anchors in memory, the same updates on both sides."""

    pairs: tuple[SitePair, ...]
    updates: list[LowRank]
    moved: LowRank

    @property
    def domains(self) -> list[str]:
        return [str(number % 4) for number in range(len(self.updates))]

    def kernels(self, pair: SitePair, space: Space) -> Kernels:
        K = site_kernel(self.updates, space)
        k = gram(self.updates, [self.moved], space)[:, 0]
        return Kernels(K, k, K, float(gram([self.moved], [self.moved], space)))


class _Peak:
    """Highest resident memory while the block runs, sampled every 2 ms."""

    def __enter__(self) -> _Peak:
        self._page = resource.getpagesize()
        self.before = self.highest = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.highest = max(self.highest, self._now())

    def _now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * self._page


def one(name: str, role: str) -> dict[str, float]:
    """Median seconds and peak bytes of one method's `carry` on one site."""
    o, i = SHAPES[role]
    made = torch.Generator().manual_seed(0)
    weights: dict[Side, Tensor] = {"source": torch.randn(o, i, generator=made)}
    weights["target"] = weights["source"] + 0.1 * torch.randn(o, i, generator=made)
    params = parse_params(METHODS[name])
    anchored = METHODS[name].get("alignment") == "anchored"
    rows: dict[tuple[Side, Port], Tensor] = {}
    for side in weights if anchored else ():
        rows[side, "in"] = torch.randn(_ANCHORS, i, generator=made)
        rows[side, "out"] = torch.randn(_ANCHORS, o, generator=made)
    delta = LowRank(torch.randn(o, _RANK, generator=made), torch.randn(_RANK, i, generator=made))
    site = SitePair(Site(0, Role(role)), Site(0, Role(role)), (o, i), (o, i))
    made_pool = [
        LowRank(torch.randn(o, _RANK, generator=made), torch.randn(_RANK, i, generator=made))
        for _ in range(_POOL if name == "anchor_ridge" else 0)
    ]
    method, evidence = get_method(params.name), _Evidence(weights, rows, made_pool)
    anchors = _Pool((site,), made_pool, delta) if made_pool else None
    state = method.prepare(params, BasePairInfo({}, {}, (site,), anchors))
    begun = time.perf_counter()
    if "factors" in method.needs(params):
        for side in weights:
            evidence.factors(side, params.rank)  # type: ignore[attr-defined]
    factors_s = time.perf_counter() - begun
    times = []
    with _Peak() as peak:
        for _ in range(_REPEATS):
            begun = time.perf_counter()
            method.transfer_site(params, state, site, delta, evidence)
            times.append(time.perf_counter() - begun)
    dense = 4.0 * o * i
    return {
        "seconds": statistics.median(times),
        "factors_s": factors_s,
        "peak_dense": (peak.highest - peak.before) / dense,
    }


def main() -> None:
    """Print the table, and the same figures as one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "ROLE"))
    asked = parser.parse_args().one
    if asked:
        print(json.dumps(one(*asked)))
        return
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"one site, rank {_RANK}; seconds of carry (factors known), of its factors, peak in dense weights\n"
    )
    print(f"{'method':24}{'role':10}{'carry s':>10}{'factors s':>11}{'peak':>8}")
    figures: dict[str, dict[str, float]] = {}
    for role in SHAPES:
        for name in METHODS:
            command = [sys.executable, "-m", "benchmarks.methods", "--one", name, role]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = figures[f"{name}/{role}"] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:24}{role:10}{found['seconds']:10.3f}{found['factors_s']:11.2f}{found['peak_dense']:8.2f}"
            )
    print(json.dumps({"benchmark": "methods", "figures": figures}))


if __name__ == "__main__":
    main()
