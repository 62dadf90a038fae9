"""Whole Cross-LoRA conversions on 1.5B → 3B shapes: cold, warm, and the worker's peak memory by depth.

    python -m benchmarks.convert --layers 4 28

Every conversion runs in a fresh process, through the pipeline that the worker runs. Times count the pipeline
alone; peak memory is the process's high-water mark less what the imports took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.synthetic import LARGE, SMALL, write_adapter, write_base

RANK = 320


def peak_bytes() -> int:
    """High-water mark of this process's resident memory (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM line")


def child(hub: Path, cache: Path, out: Path, repos: list[str], threads: int) -> dict[str, Any]:
    """One conversion in this process."""
    import peft
    import torch
    import transformers

    from rebase.cache.factor_cache import FactorCache
    from rebase.conversion.pipeline import ConversionResult, run_conversion
    from rebase.conversion.plan import plan_conversion
    from rebase.hub.local import LocalHub
    from rebase.report.progress import NullReporter
    from rebase.runtime import Runtime
    from rebase.schemas.conversions import ConversionRequest

    torch.set_num_threads(threads)
    del peft, transformers
    imported = peak_bytes()
    adapter, target = repos
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": adapter},
            "target": {"repo_id": target},
            "method": {"name": "cross_lora", "rank": RANK},
            "precheck": {"on_incompatible": "warn"},
        }
    )
    tools = Runtime(LocalHub(hub), FactorCache(cache, 64 * 2**30), torch.device("cpu"))
    began = time.perf_counter()
    outcome = run_conversion(plan_conversion(request, "convert"), tools, NullReporter(), out, marker=None)
    seconds = time.perf_counter() - began
    assert isinstance(outcome, ConversionResult)
    return {
        "seconds": seconds,
        "peak_above_import": peak_bytes() - imported,
        "computed": tools.cache.stats.computed,
    }


def in_a_process(hub: Path, cache: Path, out: Path, repos: list[str], threads: int) -> dict[str, Any]:
    """`child` in a fresh interpreter."""
    command = [sys.executable, "-m", "benchmarks.convert", "--child", str(hub), str(cache), str(out), *repos]
    done = subprocess.run(
        [*command, "--threads", str(threads)], check=True, stdout=subprocess.PIPE, text=True
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(layers: int, threads: int) -> dict[str, Any]:
    """Cold, then warm twice, in one hub folder of that depth."""
    with tempfile.TemporaryDirectory(prefix="rebase-bench-") as folder:
        hub, cache = Path(folder) / "hub", Path(folder) / "cache"
        base = write_base(hub, SMALL, layers, seed=1)
        target = write_base(hub, LARGE, layers, seed=2)
        adapter = write_adapter(hub, SMALL, layers, base, rank=16, seed=3)
        cold = in_a_process(hub, cache, Path(folder) / "out-cold", [adapter, target], threads)
        warm = min(
            (
                in_a_process(hub, cache, Path(folder) / f"out-{n}", [adapter, target], threads)
                for n in range(2)
            ),
            key=lambda figures: figures["seconds"],
        )
    assert warm["computed"] == 0
    return {
        "layers": layers,
        "cold_s": round(cold["seconds"], 2),
        "warm_s": round(warm["seconds"], 2),
        "cold_over_warm": round(cold["seconds"] / warm["seconds"], 1),
        "computed": cold["computed"],
        "cold_peak_mb": round(cold["peak_above_import"] / 1e6),
        "warm_peak_mb": round(warm["peak_above_import"] / 1e6),
    }


def main() -> int:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 28])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=5, metavar=("HUB", "CACHE", "OUT", "ADAPTER", "TARGET"))
    arguments = parser.parse_args()
    if arguments.child:
        hub, cache, out, *repos = arguments.child
        print(json.dumps(child(Path(hub), Path(cache), Path(out), repos, arguments.threads)))
        return 0
    rows = []
    print("layers   cold s   warm s   ratio   peak MB above import (cold / warm)")
    for layers in arguments.layers:
        row = measure(layers, arguments.threads)
        rows.append(row)
        print(
            f"{row['layers']:6d} {row['cold_s']:8.1f} {row['warm_s']:8.1f} {row['cold_over_warm']:7.1f}   "
            f"{row['cold_peak_mb']} / {row['warm_peak_mb']}",
            flush=True,
        )
    print(json.dumps({"rank": RANK, "threads": arguments.threads, "runs": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
