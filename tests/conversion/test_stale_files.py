"""What nobody comes back to in the work folder."""

from __future__ import annotations

import os
from pathlib import Path

from rebase.conversion.output_folder import MAX_AGE_S, remove_stale

NOW = 2e9


def _written(path: Path, age: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    os.utime(path, (NOW - age, NOW - age))
    os.utime(path.parent, (NOW - 2 * MAX_AGE_S, NOW - 2 * MAX_AGE_S))


def test_trainings_and_rows_that_nobody_wrote_to_for_a_week_are_removed(tmp_path: Path) -> None:
    for name in ("training/old", "rows-old"):
        _written(tmp_path / name / "some.safetensors", MAX_AGE_S + 1)
    for name in ("training/new", "rows-new", "job-1"):
        _written(tmp_path / name / "some.safetensors", MAX_AGE_S - 1)
    _written(tmp_path / "job-2" / "adapter_model.safetensors", 2 * MAX_AGE_S)
    remove_stale(tmp_path, NOW)
    left = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"training/new", "rows-new", "job-1", "job-2"}


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    remove_stale(tmp_path / "none", NOW)
