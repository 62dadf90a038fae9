"""One pass that measures four ranks on shared factors, against four runs at one rank each.

    python -m benchmarks.rank_sweep [--target google/gemma-3-270m]

A really trained LoRA is moved by `cross_lora` with the paper's ranks, each run with an empty cache: once with
`sweep`, then at each rank alone. The energies of both ways have to agree. `carry` is the time in which the
sites are factorised and moved; the rest (reading, pre-check, verification) does not depend on the ranks.
Weights come from packages (see tests/support/real_models.py). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.hub.local import LocalHub
from rebase.lora.low_rank import Role
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from support.real_models import GEMMA3, MODELS
from support.real_repos import ADAPTER_REPO, fill_hub

RANKS: Final = (80, 160, 320, 480)  # of the paper
ENERGIES: Final = ("energy_source", "energy_target", "energy_kept")


class Carrying(NullReporter):
    """Takes the time between the first and the last site."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        if phase is Phase.FACTORIZING and total is not None:
            self.ended = time.perf_counter()
            self.began = self.began if done else self.ended


def move(
    hub: Path, target: str, method: dict[str, Any]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(seconds, target site → measurements) of one run with an empty cache."""
    body = {
        "adapter": {"repo_id": ADAPTER_REPO},
        "target": {"repo_id": target},
        "method": {"name": "cross_lora", **method},
        "precheck": {"on_incompatible": "warn"},
    }
    watch = Carrying()
    with tempfile.TemporaryDirectory(prefix="rank-sweep-") as scratch:
        cache = FactorCache(Path(scratch) / "cache", 2**33, None, 60, 2**20)
        tools = Runtime(LocalHub(hub), cache, torch.device("cpu"))
        request = ConversionRequest.model_validate(body)
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = run_conversion(
            plan_conversion(request, "convert"), tools, watch, Path(scratch) / "moved", marker=None
        )
        seconds = {
            "total": time.perf_counter() - wall,
            "carry": watch.ended - watch.began,
            "cpu": time.process_time() - cpu,
        }
    assert isinstance(outcome, ConversionResult)
    return seconds, {row.target: row.measurements for row in outcome.report.sites}


def by_role(sites: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    """Mean of a measurement over the layers, role by role."""
    found: dict[str, float] = {}
    for role in Role:
        values = [row[name] for site, row in sites.items() if site.endswith(f".{role.value}")]
        found[role.value] = sum(values) / len(values)
    return found


def main() -> int:
    """Print both tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default=GEMMA3.repo_id, choices=[m.repo_id for m in MODELS.values()])
    target = parser.parse_args().target
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory(prefix="rank-sweep-hub-") as folder:
        hub = Path(folder) / "hub"
        fill_hub(hub)
        times: dict[str, dict[str, float]] = {}
        times["sweep"], swept = move(hub, target, {"rank": 320, "sweep": list(RANKS)})
        largest = 0.0
        for k in RANKS:
            times[str(k)], alone = move(hub, target, {"rank": k})
            gaps = (
                abs(swept[site][f"{name}_at_{k}"] - row[name])
                for site, row in alone.items()
                for name in ENERGIES
            )
            largest = max(largest, *gaps)
    print(f"{len(swept)} sites on {target}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
    print(f"{'run':12}{'carry s':>10}{'total s':>10}{'CPU s':>10}")
    separate = {key: sum(times[str(k)][key] for k in RANKS) for key in ("carry", "total", "cpu")}
    for name, row in (*times.items(), ("four runs", separate)):
        print(f"{name:12}{row['carry']:10.1f}{row['total']:10.1f}{row['cpu']:10.1f}")
    ratios = {key: separate[key] / times["sweep"][key] for key in separate}
    print("\nfour runs / one pass: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()))
    print(f"largest difference of an energy between the two ways: {largest:.1e}\n")
    energies = {name: {k: by_role(swept, f"{name}_at_{k}") for k in RANKS} for name in ENERGIES}
    for name, table in energies.items():
        print(f"{name:14}" + "".join(f"{role.value:>11}" for role in Role))
        for k, row in table.items():
            print(f"{k:<14}" + "".join(f"{value:11.3f}" for value in row.values()))
    about = {"machine": platform.machine(), "torch": torch.__version__, "target": target, "sites": len(swept)}
    figures = {"seconds": times, "ratios": ratios, "largest_difference": largest, "energies": energies}
    print(json.dumps({"benchmark": "rank_sweep", **about, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
