"""The short form of `make bench NAME=real`: one task, one way, few rows. The whole table is a benchmark."""

from __future__ import annotations

import pytest

from benchmarks.real_cells import CONTROLS, ROWS, Lab
from benchmarks.real_table import Comparison, Share, compared, printed

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

PAIR, TASK = "smollm2-to-gemma3", "harbour-log"
# With the benchmark's own settings distillation alone would take a quarter of an hour here.
SHORT = {"name": "distill", "tokens": 3000, "batch": 4, "steps": 16, "evaluate_every": 8}
CONTROLS_AND_METHODS = ("copy, padded", "activation", "random, as long as activation", "distill")
ENTRIES = 40  # of the log: some two dozen sequences


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    lab = Lab(tmp_path_factory.mktemp("real"), {**ROWS, "distill": SHORT}, ENTRIES)
    cells = [lab.measure(PAIR, TASK, row) for row in ("alone", "native", *CONTROLS_AND_METHODS)]
    found = compared(cells, [TASK])
    print(printed(PAIR, found))
    return found


def share(table: Comparison, row: str) -> Share:
    return next(line.nats[TASK] for line in table.lines if line.row == row)


def test_a_native_adapter_shows_that_there_is_a_skill_to_move(table: Comparison) -> None:
    bounds = table.bounds[TASK]
    assert bounds["alone"][0] - bounds["native"][0] > 3.0
    assert bounds["native"][1] > bounds["alone"][1] + 0.3


def test_the_best_training_free_method_is_above_every_control_beyond_chance(table: Comparison) -> None:
    assert table.best == "activation"
    against = [line.best_against for line in table.lines if line.row in CONTROLS]
    assert len(against) == 2
    assert all(found is not None and found.low > 0.0 for found in against)
    assert share(table, "activation").low > 0.0


def test_a_few_steps_on_what_the_source_writes_carry_more_than_any_map(table: Comparison) -> None:
    assert share(table, "distill").low > 0.2 > share(table, "activation").high
