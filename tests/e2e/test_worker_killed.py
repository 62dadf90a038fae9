"""A worker that is killed -9 loses no job and commits nothing twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.chaos import MOMENTS, Arena, one_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with Arena(tmp_path_factory.mktemp("chaos")) as running:
        yield running


@pytest.mark.parametrize("moment", sorted(set(MOMENTS)))
def test_a_job_whose_worker_dies_in_any_phase_is_done_by_the_next_worker_once(
    arena: Arena, moment: str
) -> None:
    run = one_run(arena, f"tiny/killed-{moment}", moment, 0.0)

    assert run.state == "succeeded"
    assert run.commits == 1
