"""What a trained adapter's skill is worth after a move between families: every method, on real weights.

    python -m benchmarks.real [--pairs …] [--tasks …] [--rows …] [--cells DIR]

Adapters that SmolLM2-135M-Instruct and Gemma-3-270M learnt by one recipe (tests/support/real_tasks.py: a
language, a record format, a routing of messages) are moved both ways by `workers.pipeline.run`. The target is
measured on held-out examples: alone, with an adapter trained on itself (the ceiling), with controls, and with
every method. *Recovered* is (row − alone) / (native − alone), in nats and in accuracy, with 95 % bootstrap
intervals over examples. Weights come from packages (tests/support/real_models.py). Distillation takes minutes
a cell on a CPU: `--cells DIR` keeps what is measured, so that a run goes on where the last one stopped, and
processes may share the work. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from benchmarks.real_cells import PAIRS, ROWS, Cell, Kept, Lab
from benchmarks.real_table import Comparison, compared, printed
from support.real_tasks import TASKS


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cells that lack, print the tables and the JSON line."""
    chosen = _parsed(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory(prefix="real-") as scratch:
        kept = Kept(Path(chosen.cells or f"{scratch}/cells"))
        lab = Lab(Path(scratch))
        cells: list[Cell] = []
        for pair in chosen.pairs:
            for task in chosen.tasks:
                for row in ("alone", "native", *chosen.rows):
                    cells.append(kept.get_or(pair, task, row, lab.measure))
    found: list[Comparison] = []
    for pair in chosen.pairs:
        found.append(compared([cell for cell in cells if cell.pair == pair], list(chosen.tasks)))
        print(printed(pair, found[-1]), flush=True)
    about: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__}
    print(json.dumps(about | {p: f.document() for p, f in zip(chosen.pairs, found, strict=True)}))
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="methods, controls")
    parser.add_argument("--cells", help="a folder that keeps what was measured")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
