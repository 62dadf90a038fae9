"""Where the time of one factorisation goes, step by step, beside an exact SVD of the same weight.

    python -m benchmarks.factor_steps

Best of three for our steps, one run for the SVD. Prints a table and one JSON line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from benchmarks.synthetic import realistic
from rebase.lora.linalg import factorize

RANK, GUARDED, THREADS = 320, 352, 2
WEIGHTS = (
    (11008, 2048, "gate_proj"),
    (2048, 2048, "q_proj"),
    (8960, 1536, "gate_proj"),
    (1536, 1536, "q_proj"),
)


def seconds(work: Callable[[], object], runs: int) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(min(times), 3)


def measure(o: int, i: int, role: str) -> dict[str, float]:
    """Seconds by step for one bf16 weight of a realistic spectrum."""
    stored = realistic(o, i, role, torch.Generator().manual_seed(0))
    W = stored.float()
    gram = W.T @ W
    basis = torch.linalg.eigh(gram).eigenvectors[:, -GUARDED:].contiguous()
    image = (W @ basis).double()
    return {
        "factorize": seconds(lambda: factorize(stored, RANK), 3),
        "whole_gram": seconds(lambda: W.T @ W, 3),
        "eigh": seconds(lambda: torch.linalg.eigh(gram), 3),
        "image": seconds(lambda: W @ basis, 3),
        "refine": seconds(lambda: torch.linalg.eigh(image.T @ image), 3),
        "svd": seconds(lambda: torch.linalg.svd(W, full_matrices=False), 1),
    }


def main() -> None:
    """All weights."""
    torch.set_num_threads(THREADS)
    rows = {f"{o}x{i}": measure(o, i, role) for o, i, role in WEIGHTS}
    names = list(next(iter(rows.values())))
    print(f"{'weight':<12}" + "".join(f"{name:>12}" for name in names))
    for weight, row in rows.items():
        print(f"{weight:<12}" + "".join(f"{row[name]:>12.3f}" for name in names))
    print(json.dumps({"rank": RANK, "threads": THREADS, "seconds": rows}))


if __name__ == "__main__":
    main()
