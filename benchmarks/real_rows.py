"""What each row of `benchmarks.real` asks of the pipeline; a row that names another draws its random twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Wanted = dict[str, Any] | str

_STEP = {"name": "activation", "solve": "step"}

ROWS: Mapping[str, Wanted] = {
    "copy, padded": {"name": "copy", "pad": True},
    "random, as long as copy": "copy, padded",
    "difference": {"name": "difference"},
    "linear": {"name": "linear"},
    "weight_average": {"name": "weight_average"},
    "ties": {"name": "ties"},
    "prolora": {"name": "prolora"},
    "cross_lora index": {"name": "cross_lora", "alignment": "index"},
    "cross_lora anchored": {"name": "cross_lora", "alignment": "anchored"},
    "cross_lora activations": {"name": "cross_lora", "alignment": "activations"},
    "geometric": {"name": "geometric"},
    "anchor_ridge": {"name": "anchor_ridge"},
    "activation": {"name": "activation"},
    "random, as long as activation": "activation",
    "activation step": _STEP,
    "random, as long as activation step": "activation step",
    "cast": {"name": "cast"},
    "distill": {"name": "distill"},
}
CONTROLS = (
    "copy, padded",
    "random, as long as copy",
    "random, as long as activation",
    "random, as long as activation step",
)

# What training is given to learn from and for how long, one thing at a time. All steps are taken and the best
# ones kept, so that what is compared is what the row says.
_BASE = {"name": "distill", "tokens": 20_000, "steps": 200, "patience": 0}
_SHORT = _BASE | {"tokens": 3_000, "steps": 60}
STUDY: Mapping[str, Wanted] = {
    "distill 200 steps": _BASE,
    "distill 20 steps": _BASE | {"steps": 20},
    "distill 60 steps": _BASE | {"steps": 60},
    "distill 600 steps": _BASE | {"steps": 600, "evaluate_every": 20},
    "distill 2k tokens": _BASE | {"tokens": 2_000},
    "distill 6k tokens": _BASE | {"tokens": 6_000},
    "distill 60k tokens": _BASE | {"tokens": 60_000},
    "distill 60k tokens 600 steps": _BASE | {"tokens": 60_000, "steps": 600, "evaluate_every": 20},
    "distill from step": _BASE | {"init": "step"},
    "distill from closed form": _BASE | {"init": "closed_form"},
    "distill 20 steps from step": _BASE | {"steps": 20, "init": "step"},
    "distill where it speaks": _BASE | {"filter": "speaks"},
    "distill with shift": _BASE | {"shift": 1.0},
    "distill rate 1e-3": _BASE | {"learning_rate": 1e-3},
    "distill rank 64": _BASE | {"rank": 64},
    "distill bfloat16": _BASE | {"precision": "bfloat16"},
    # The same questions for less, where steps are slow: 60 of short answers read 3,000 tokens about once.
    "distill 60 steps 300 tokens": _SHORT | {"tokens": 300},
    "distill 60 steps 1k tokens": _SHORT | {"tokens": 1_000},
    "distill 60 steps 3k tokens": _SHORT,
    "distill 60 steps 3k tokens from closed form": _SHORT | {"init": "closed_form"},
    "distill 60 steps 3k tokens from step": _SHORT | {"init": "step"},
    "distill 60 steps 3k tokens with shift": _SHORT | {"shift": 1.0},
    "distill 60 steps 3k tokens where it speaks": _SHORT | {"filter": "speaks"},
    "distill 60 steps 3k tokens rank 64": _SHORT | {"rank": 64},
    "cast 60 steps": {"name": "cast", "steps": 60, "patience": 0},
    "cast literal 60 steps": {"name": "cast", "steps": 60, "patience": 0, "objective": "distribution"},
    "cast literal": {"name": "cast", "objective": "distribution"},
    "activation both": _STEP | {"solve": "both"},
}


ALL: Mapping[str, Wanted] = {**ROWS, **STUDY}


def trains(row: str) -> bool:
    """Does the row train, so that it does not count as training-free?"""
    return row.startswith(("distill", "cast"))


def groups(rows: list[str]) -> list[list[str]]:
    """Rows that belong together: a random twin is drawn beside the row that it names."""
    found: dict[str, list[str]] = {}
    for row in rows:
        wanted = ALL.get(row)
        found.setdefault(wanted if isinstance(wanted, str) else row, []).append(row)
    return list(found.values())
