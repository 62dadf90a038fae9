"""Cross-LoRA's factors on 1.5B → 3B shapes: against an exact SVD per tensor, from the cache, and in memory.

    python -m benchmarks.factors                      everything (minutes: the exact SVDs are slow)
    python -m benchmarks.factors --memory-layers 2 4  short memory runs

One layer of each base is measured, with all seven modules, and scaled to the depth of the real ones. Both
sides of every ratio are timed in this run. Whole jobs are timed by `benchmarks.convert`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.convert import peak_bytes
from benchmarks.synthetic import LARGE, SMALL, Shape, realistic
from rebase.cache.factor_cache import FactorCache
from rebase.cache.keys import FactorKey, PairKey
from rebase.evidence.embeddings import INNER_ROWS
from rebase.hub.files import FileSource
from rebase.lora.linalg import FACTORS_VERSION, factorize, frobenius
from rebase.lora.low_rank import Factors, LowRank, Role, Side, Site
from rebase.methods.base import Port, SitePair
from rebase.methods.cross_lora.method import CrossLora
from rebase.methods.cross_lora.params import CrossLoraParams
from rebase.models.safetensors_file import SafetensorsFile

RANK = 320
LORA_RANK = 16
ANCHORS = 4096
ALIGNMENTS = ("index", "anchored")
DEPTHS: Mapping[Side, int] = {"source": 28, "target": 36}
SHAPES: Mapping[Side, Shape] = {"source": SMALL, "target": LARGE}
Weights = Mapping[tuple[Side, Role], Tensor]
Shapes = Mapping[tuple[Side, Role], tuple[int, ...]]
T = TypeVar("T")
_SHA = "0" * 40


@dataclass(slots=True)
class Clock:
    """Wall and processor seconds by name; the latter hardly see what else the machine is doing."""

    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], T]) -> T:
        """Run and add to the name's seconds."""
        began, spent = time.perf_counter(), time.process_time()
        result = work()
        self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - spent
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        return result


@dataclass(frozen=True, slots=True)
class Given:
    """SiteEvidence from factors in hand and the rows of unrelated bases; alignments kept in `cache`."""

    factored: Mapping[Side, Factors]
    rows: Mapping[tuple[Side, Port], Tensor] = field(default_factory=dict)
    cache: FactorCache | None = None
    role: str = ""

    def weight(self, side: Side) -> Tensor:
        raise LookupError(f"cross_lora does not read the {side} weight")

    def factors(self, side: Side, rank: int) -> Factors:
        return self.factored[side]

    def embedding_rows(self, side: Side, port: Port) -> Tensor:
        return self.rows[side, port]

    def cached_by_site(self, entry_name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if self.cache is None:
            return compute()
        sides = ("bench/source", _SHA, self.role, "bench/target", _SHA, self.role)
        return self.cache.get_or_compute_tensors(PairKey(*sides, entry_name, "random rows"), compute)


def draw(seed: int) -> Weights:
    """One layer of both bases, bf16 with falling spectra."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (side, Role(module.split(".")[1])): realistic(o, i, module.split(".")[1], generator)
        for side, shape in SHAPES.items()
        for module, (o, i) in shape.sites().items()
    }


def shapes_of(weights: Weights) -> Shapes:
    """(o, i) of every weight."""
    return {key: tuple(weight.shape) for key, weight in weights.items()}


def exact(W: Tensor, rank: int) -> Factors:
    """What `factorize` replaces: a full SVD, cut."""
    U, S, Vh = torch.linalg.svd(W.float(), full_matrices=False)
    energy = float(S[:rank].double().square().sum() / S.double().square().sum())
    return Factors(U[:, :rank], S[:rank], Vh[:rank].T, energy)


def same_signs(theirs: Factors, ours: Factors) -> tuple[Factors, int]:
    """`theirs` with each (u_j, v_j) turned as in `ours`, and how often the largest-entry rule disagrees.

    It disagrees where the two largest entries of u_j tie within rounding and differ in sign.
    """
    signs = torch.where((theirs.U * ours.U).sum(0) < 0, -1.0, 1.0)
    peaks = theirs.U.gather(0, theirs.U.abs().argmax(0, keepdim=True))[0]
    ties = int((peaks.sign() != signs).sum())
    return Factors(theirs.U * signs, theirs.S, theirs.V * signs, theirs.energy), ties


def update(shape: tuple[int, int], seed: int) -> LowRank:
    """A random LoRA update."""
    generator = torch.Generator().manual_seed(seed)
    o, i = shape
    return LowRank(
        torch.randn(o, LORA_RANK, generator=generator) * 0.01,
        torch.randn(LORA_RANK, i, generator=generator) / i**0.5,
    )


def carry(role: Role, shapes: Shapes, evidence: Given, alignment: str) -> LowRank:
    """One site through Cross-LoRA."""
    source, target = ((shapes[side, role][0], shapes[side, role][1]) for side in DEPTHS)
    site = SitePair(Site(0, role), Site(0, role), source, target)
    params = CrossLoraParams.model_validate({"rank": RANK, "alignment": alignment})
    return CrossLora().transfer_site(params, None, site, update(source, 3), evidence).delta


def difference(a: LowRank, b: LowRank) -> float:
    """‖a − b‖_F / ‖b‖_F, through the factors."""
    return frobenius(LowRank(torch.cat([a.B, -b.B], 1), torch.cat([a.A, b.A], 0))) / frobenius(b)


def affinity(a: Factors, b: Factors) -> float:
    """The lower of both sides' mean squared cosine between subspaces; 1 = the same subspace."""
    return min(
        float((x.double().T @ y.double()).square().sum()) / x.shape[1] for x, y in ((a.U, b.U), (a.V, b.V))
    )


def against_exact(weights: Weights) -> list[dict[str, Any]]:
    """Per module: seconds scaled to full depth, agreement of factors and of the carried update."""
    rows = []
    for role in Role:
        clock, ties = Clock(), 0
        ours: dict[Side, Factors] = {}
        theirs: dict[Side, Factors] = {}
        for side in DEPTHS:
            W = weights[side, role]
            ours[side] = clock.time(side, lambda W=W: factorize(W.float(), RANK))  # type: ignore[misc]
            raw = clock.time(f"{side} svd", lambda W=W: exact(W, RANK))  # type: ignore[misc]
            theirs[side], tied = same_signs(raw, ours[side])
            ties += tied
        moved, wanted = (
            carry(role, shapes_of(weights), Given(factored), "index") for factored in (ours, theirs)
        )
        rows.append(
            {
                "module": role.value,
                "energy": [round(ours[side].energy, 3) for side in DEPTHS],
                "cold_s": sum(clock.seconds[side] * depth for side, depth in DEPTHS.items()),
                "svd_s": sum(clock.seconds[f"{side} svd"] * depth for side, depth in DEPTHS.items()),
                "cold_cpu_s": sum(clock.processor[side] * depth for side, depth in DEPTHS.items()),
                "svd_cpu_s": sum(clock.processor[f"{side} svd"] * depth for side, depth in DEPTHS.items()),
                "sign_ties": ties,
                "affinity": min(affinity(ours[side], theirs[side]) for side in DEPTHS),
                "index_difference": difference(moved, wanted),
            }
        )
    return rows


def from_cache(weights: Weights) -> dict[str, float]:
    """Seconds of one layer pair: factors computed and stored, then read back; carrying by each alignment.

    The anchors' rows are given: making them from the weights is part of `benchmarks.convert`.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="rebase-bench-") as folder:
        for state in ("cold", "warm"):
            cache = FactorCache(Path(folder), 16 * 2**30)
            for role in Role:
                factored = clock.time(state, lambda r=role, c=cache: _cached(c, weights, r))  # type: ignore[misc]
                rows = _anchor_rows(weights, role)
                for alignment in ALIGNMENTS:
                    clock.time(
                        f"{state} {alignment}",
                        lambda r=role, f=factored, x=rows, a=alignment, c=cache: carry(
                            r, shapes_of(weights), Given(f, x, c, r.value), a
                        ),  # type: ignore[misc]
                    )
    return clock.seconds


def _cached(cache: FactorCache, weights: Weights, role: Role) -> dict[Side, Factors]:
    return {
        side: cache.get_or_compute(
            FactorKey(f"bench/{side}", _SHA, role.value, RANK, FACTORS_VERSION),
            lambda side=side: factorize(weights[side, role].float(), RANK),  # type: ignore[misc]
        )
        for side in DEPTHS
    }


def _anchor_rows(weights: Weights, role: Role) -> dict[tuple[Side, Port], Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        (side, port): torch.randn(
            _rows(role, port), weights[side, role].shape[port == "in"], generator=generator
        )
        for side in DEPTHS
        for port in ("in", "out")
    }


def _rows(role: Role, port: Port) -> int:
    return INNER_ROWS if role is Role.DOWN and port == "in" else ANCHORS


def memory(layers: int) -> int:
    """Peak resident bytes above import of factorising and carrying that many layers, in this process."""
    with tempfile.TemporaryDirectory(prefix="rebase-bench-") as folder:
        drawn = Path(folder) / "layer.safetensors"
        command = [sys.executable, "-m", "benchmarks.factors", "--draw", str(drawn)]
        subprocess.run(command, check=True)
        before = peak_bytes()
        reader = SafetensorsFile(FileSource(drawn, drawn.name), drawn.name)
        kept = []
        for _ in range(layers):
            for role in Role:
                kept.append(_from_file(reader, role))
        return peak_bytes() - before


def _from_file(reader: SafetensorsFile, role: Role) -> LowRank:
    """One site, its weights read for it alone."""
    factored = {side: factorize(reader.read(f"{side}.{role.value}").float(), RANK) for side in DEPTHS}
    shapes = {(side, role): reader.infos()[f"{side}.{role.value}"].shape for side in DEPTHS}
    return carry(role, shapes, Given(factored), "index")


def _memory_in_a_process(layers: int, threads: int) -> int:
    command = [sys.executable, "-m", "benchmarks.factors", "--threads", str(threads), "--memory", str(layers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def report(memory_layers: list[int], threads: int) -> dict[str, Any]:
    """Print the tables; return the figures."""
    weights = draw(1)
    factorize(weights["source", Role.K].float(), RANK)  # libraries start their threads before the clock does
    rows = against_exact(weights)
    print("module      energy s/t     cold s    svd s   ratio   affinity   index difference")
    for row in rows:
        print(
            f"{row['module']:10s}  {row['energy'][0]:.2f} / {row['energy'][1]:.2f}  {row['cold_s']:9.1f} "
            f"{row['svd_s']:8.1f} {row['svd_s'] / row['cold_s']:7.1f}   {row['affinity']:.6f}   "
            f"{row['index_difference']:.1e}"
        )
    cold, svd, cold_cpu, svd_cpu = (
        sum(row[key] for row in rows) for key in ("cold_s", "svd_s", "cold_cpu_s", "svd_cpu_s")
    )
    print(f"all         28 + 36      {cold:9.1f} {svd:8.1f} {svd / cold:7.1f}")
    print(f"            processor s  {cold_cpu:9.1f} {svd_cpu:8.1f} {svd_cpu / cold_cpu:7.1f}")
    cached = from_cache(weights)
    ratios = {
        alignment: round(
            (cached["cold"] + cached[f"cold {alignment}"]) / (cached["warm"] + cached[f"warm {alignment}"]), 1
        )
        for alignment in ALIGNMENTS
    }
    print("one layer pair, seconds: " + ", ".join(f"{name} {took:.2f}" for name, took in cached.items()))
    peaks = {layers: _memory_in_a_process(layers, threads) for layers in memory_layers}
    for layers, peak in peaks.items():
        print(f"{layers} layers: peak {peak / 1e6:.0f} MB above import")
    return {
        "rank": RANK,
        "threads": threads,
        "cold_s": round(cold, 1),
        "svd_s": round(svd, 1),
        "speedup": round(svd / cold, 1),
        "speedup_processor": round(svd_cpu / cold_cpu, 1),
        "affinity_min": min(row["affinity"] for row in rows),
        "index_difference_max": max(row["index_difference"] for row in rows),
        "sign_ties": sum(row["sign_ties"] for row in rows),
        "layer_seconds": {name: round(took, 3) for name, took in cached.items()},
        "cold_over_warm": ratios,
        "peak_mb": {str(layers): round(peak / 1e6) for layers, peak in peaks.items()},
    }


def main() -> int:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-layers", type=int, nargs="*", default=[4, 28])
    parser.add_argument("--memory", type=int, metavar="LAYERS", help=argparse.SUPPRESS)
    parser.add_argument("--draw", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.draw:
        drawn = {f"{side}.{role.value}": weight for (side, role), weight in draw(1).items()}
        save_file(drawn, arguments.draw)
    elif arguments.memory is not None:
        print(memory(arguments.memory))
    else:
        print(json.dumps(report(arguments.memory_layers, arguments.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
