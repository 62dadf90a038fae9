"""The short form of `make bench NAME=real`: one task, one way, few rows. The whole table is a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from benchmarks.real_cells import Lab
from benchmarks.real_rows import CONTROLS, ROWS
from benchmarks.real_table import Comparison, Share, compared, printed
from rebase.lora.low_rank import LowRank, Site
from rebase.methods.base_params import SamplingParams
from rebase.models.causal_lm import CausalLM
from rebase.training.sample_generation import generate_samples, hash_deltas
from rebase.training.samples import SampleSet
from support.committed_adapters import adapter_folder

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]

PAIR, TASK = (
    "gemma3-to-smollm2",
    "harbour-log",
)  # the other way a step of training takes several times as long
# The benchmark's own settings would take half an hour a row here. A high rate makes up for the few steps.
STEP = {"name": "activation", "solve": "step", "written": {"tokens": 400, "length": 64}}
TRAIN = {
    "name": "distill",
    "tokens": 400,
    "length": 64,
    "batch": 4,
    "steps": 6,
    "evaluate_every": 6,
    "learning_rate": 2e-3,
    "rank": 16,  # the committed adapter has rank 1, with which so few steps teach next to nothing
}
SHORT = {**ROWS, "activation step": STEP, "distill": TRAIN}
CONTROLS_AND_METHODS = ("copy, padded", "activation step", "random, as long as activation step", "distill")
ENTRIES = 24  # of the log: some fifteen sequences


@pytest.fixture(scope="module")
def text_written_once() -> Iterator[None]:
    """The step and the training learn from the same text: one adapter, one way to sample. Gemma writes it
    once instead of twice; each sampling in another way would be written on its own."""
    texts: dict[str, SampleSet] = {}

    def generate_once(
        source: CausalLM, deltas: Mapping[Site, LowRank], params: SamplingParams, **options: Any
    ) -> SampleSet:
        sampling = params.model_dump_json(include=set(SamplingParams.model_fields)) + hash_deltas(deltas)
        if sampling not in texts:
            texts[sampling] = generate_samples(source, deltas, params, **options)
        return texts[sampling]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebase.training.run.generate_samples", generate_once)
        yield
    assert len(texts) == 1


@pytest.fixture(scope="module")
def table(text_written_once: None, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    lab = Lab(tmp_path_factory.mktemp("real"), SHORT, ENTRIES, adapter_folder)
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
    assert table.best == "activation step"
    against = [line.best_against for line in table.lines if line.row in CONTROLS]
    assert len(against) == 2
    assert all(found is not None and found.low > 0.0 for found in against)
    # 0.21 was seen. A step has the adapter's rank, here 1: told to take one of rank 16 from the same text it
    # reached 0.33; an adapter trained with rank 16 had given 0.46.
    assert share(table, "activation step").low > 0.12


def test_training_on_what_the_source_writes_carries_part_of_the_skill(table: Comparison) -> None:
    assert share(table, "distill").low > 0.2  # 0.33 was seen, after eight steps instead of six 0.42
