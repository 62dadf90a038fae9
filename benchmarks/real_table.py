"""Cells of `benchmarks.real` as shares of the native gap, with intervals, and what may be concluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_cells import Cell
from benchmarks.real_rows import CONTROLS, trains

RESAMPLES, SEED = 4000, 0
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """A recovered share and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:6.3f} [{self.low:6.3f}, {self.high:6.3f}]"


@dataclass(frozen=True)
class Line:
    """One row: shares per task in nats and in accuracy, and the mean over tasks in nats. `best_against`: the
    mean share of the best training-free method minus this control's."""

    row: str
    nats: dict[str, Share]
    right: dict[str, Share]
    mean: Share | None
    verdicts: list[str]
    refused: str
    seconds: float
    best_against: Share | None = None


@dataclass(frozen=True)
class Comparison:
    """All rows of one pair. `bounds`: nats and accuracy of the target alone and with its native adapter."""

    bounds: dict[str, dict[str, list[float]]]
    lines: list[Line]
    best: str | None

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compared(cells: Sequence[Cell], tasks: list[str]) -> Comparison:
    """Shares of every row over the tasks that it has."""
    by = {(cell.task, cell.row): cell for cell in cells}
    resampled = {
        task: _Resampled(by[task, "alone"], by[task, "native"], number) for number, task in enumerate(tasks)
    }
    rows = [row for row in dict.fromkeys(cell.row for cell in cells) if row not in ("alone", "native")]
    means: dict[str, Array] = {}
    lines: list[Line] = []
    for row in rows:
        own = {task: by[task, row] for task in tasks if not by[task, row].refused}
        draws = {task: resampled[task].shares(cell.nats, "nats") for task, cell in own.items()}
        if own:
            means[row] = np.mean(list(draws.values()), axis=0)
        refused = next((by[task, row].refused for task in tasks if by[task, row].refused), "")
        lines.append(
            Line(
                row,
                {task: _share(drawn) for task, drawn in draws.items()},
                {task: _share(resampled[task].shares(cell.right, "right")) for task, cell in own.items()},
                _share(means[row]) if own else None,
                [cell.verdict for cell in own.values()],
                refused,
                round(sum(cell.seconds for cell in own.values()), 1),
            )
        )
    free = {row: drawn for row, drawn in means.items() if row not in CONTROLS and not trains(row)}
    best = max(free, key=lambda row: float(free[row][0]), default=None)
    if best is not None:
        lines = [_against(line, free[best], means) for line in lines]
    bounds = {
        task: {
            name: [float(np.mean(by[task, name].nats)), float(np.mean(by[task, name].right))]
            for name in ("alone", "native")
        }
        for task in tasks
    }
    return Comparison(bounds, lines, best)


def printed(pair: str, found: Comparison) -> str:
    """For people."""
    tasks = list(found.bounds)
    out = [f"\n{pair}: share of the native gap recovered, in nats / in accuracy, with 95 % intervals"]
    for task, bounds in found.bounds.items():
        alone, native = bounds["alone"], bounds["native"]
        out.append(
            f"  {task}: alone {alone[0]:.3f} nats, {alone[1]:.2f} right; "
            f"native {native[0]:.3f} nats, {native[1]:.2f} right"
        )
    out.append(
        f"{'row':32s}" + "".join(f"{task:>34s}" for task in tasks) + f"{'mean in nats':>26s}  verdicts"
    )
    for line in found.lines:
        if line.mean is None:
            out.append(f"{line.row:32s} refused: {line.refused[:120]}")
            continue
        columns = "".join(
            f"{f'{line.nats[task]} /{line.right[task].value:6.2f}' if task in line.nats else 'refused':>34s}"
            for task in tasks
        )
        out.append(f"{line.row:32s}{columns}{line.mean!s:>26s}  {', '.join(sorted(set(line.verdicts)))}")
    out += [
        f"{found.best} minus {line.row}: {line.best_against}" for line in found.lines if line.best_against
    ]
    return "\n".join(out)


class _Resampled:
    """Bootstrap draws of one task's examples; entry 0 is the sample itself, so that values and intervals come
    from one array. All rows see the same draws, which makes differences between rows paired."""

    def __init__(self, alone: Cell, native: Cell, number: int) -> None:
        size = len(alone.nats)
        drawn = np.random.default_rng([SEED, number]).integers(0, size, (RESAMPLES, size))
        self.draws = np.concatenate([np.arange(size)[None], drawn])
        self.bounds: Mapping[str, tuple[Array, Array]] = {
            "nats": (self._means(alone.nats), self._means(native.nats)),
            "right": (self._means(alone.right), self._means(native.right)),
        }

    def shares(self, scores: list[float], kind: str) -> Array:
        """(row − alone) / (native − alone) of every draw."""
        alone, native = self.bounds[kind]
        gap = native - alone
        return (self._means(scores) - alone) / np.where(np.abs(gap) < 1e-9, np.nan, gap)

    def _means(self, scores: list[float]) -> Array:
        found: Array = np.asarray(scores, dtype=np.float64)[self.draws].mean(axis=1)
        return found


def _share(draws: Array) -> Share:
    low, high = np.nanquantile(draws[1:], [0.025, 0.975])
    return Share(round(float(draws[0]), 4), round(float(low), 4), round(float(high), 4))


def _against(line: Line, best: Array, means: Mapping[str, Array]) -> Line:
    if line.row not in CONTROLS or line.row not in means:
        return line
    return replace(line, best_against=_share(best - means[line.row]))
