"""What a trained adapter's skill is worth after a move between families: every method, on real weights.

    python -m benchmarks.real [--pairs …] [--tasks …] [--rows …] [--cells DIR] [--device cuda] [--jobs N]

Adapters that SmolLM2-135M-Instruct and Gemma-3-270M learnt by one recipe (tests/support/real_tasks.py: a
language, a record format, a routing of messages) are moved both ways by `rebase.conversion.pipeline`, and
where
`--pairs` asks for it to stories15M, which is small and comes by npm. The target is measured on held-out
examples: alone, with an adapter trained on itself (the ceiling), with controls, and with every method.
*Recovered* is (row − alone) / (native − alone), in nats and in accuracy, with 95 % bootstrap intervals over
examples. Weights come from packages (tests/support/real_models.py). `--rows study` asks for what distillation
is given to learn from instead. Training takes many minutes a cell on a CPU: `--cells DIR` keeps what is
measured, so that a run goes on where the last one stopped. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from benchmarks.real_rows import ROWS, STUDY, groups

BOUNDS = ("alone", "native")
PAIRS = ["smollm2-to-gemma3", "gemma3-to-smollm2", "smollm2-to-stories", "gemma3-to-stories"]
TASKS = ["harbour-log", "orders", "desk"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cells that lack, print the tables and the JSON line."""
    chosen = _parsed(arguments)
    os.environ["REBASE_TEST_DEVICE"] = chosen.device  # before anything reads it, here and in child processes
    from benchmarks.real_cells import Cell, Kept
    from benchmarks.real_table import Comparison, compared, printed

    with tempfile.TemporaryDirectory(prefix="real-") as scratch:
        folder = Path(chosen.cells or f"{scratch}/cells")
        work = [
            (pair, task, rows)
            for rows in ([*BOUNDS], *groups(chosen.rows))
            for task in chosen.tasks
            for pair in chosen.pairs
        ]
        _measure(work, folder, Path(scratch), chosen.jobs)
        kept = Kept(folder)
        cells: list[Cell] = [
            kept.read(pair, task, row)
            for pair in chosen.pairs
            for task in chosen.tasks
            for row in (*BOUNDS, *chosen.rows)
        ]
    found: list[Comparison] = []
    for pair in chosen.pairs:
        found.append(compared([cell for cell in cells if cell.pair == pair], list(chosen.tasks)))
        print(printed(pair, found[-1]), flush=True)
    about: dict[str, Any] = {"machine": platform.machine(), "device": chosen.device}
    print(json.dumps(about | {p: f.document() for p, f in zip(chosen.pairs, found, strict=True)}))
    return 0


def _measure(work: list[tuple[str, str, list[str]]], folder: Path, scratch: Path, jobs: int) -> None:
    """All cells as files in `folder`, by so many processes."""
    if jobs == 1:
        _start(scratch)
        for pair, task, rows in work:
            measure(pair, task, rows, folder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(scratch,)) as pool:
        for done in [pool.submit(measure, pair, task, rows, folder) for pair, task, rows in work]:
            done.result()


_lab: list[Any] = []  # of this process


def _start(scratch: Path) -> None:
    import torch

    from benchmarks.real_cells import Lab

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    own = scratch / f"lab-{os.getpid()}"
    own.mkdir()
    _lab.append(Lab(own))


def measure(pair: str, task: str, rows: list[str], folder: Path) -> None:
    """These cells, unless they are there."""
    from benchmarks.real_cells import Kept

    for row in rows:
        Kept(folder).get_or(pair, task, row, _lab[0].measure)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS[:2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    rows = ["all", "study", *ROWS, *STUDY]
    parser.add_argument("--rows", nargs="+", choices=rows, default=["all"], help="methods and controls")
    parser.add_argument("--cells", help="a folder that keeps what was measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    chosen = parser.parse_args(arguments)
    meant = {"all": list(ROWS), "study": list(STUDY)}
    chosen.rows = list(dict.fromkeys(row for name in chosen.rows for row in meant.get(name, [name])))
    return chosen


if __name__ == "__main__":
    sys.exit(main())
