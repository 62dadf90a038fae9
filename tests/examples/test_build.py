"""The script that trains the bundled models, in its short form."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.build import build
from examples.pool import SMOKE as POOL_SMOKE
from examples.pool import build_pool
from examples.recipes import SMOKE


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_two_runs_of_the_build_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        build(tmp_path / name, SMOKE, say=lambda _: None)
        build_pool(tmp_path / name, POOL_SMOKE, say=lambda _: None)
    first = _bytes(tmp_path / "one")
    assert first == _bytes(tmp_path / "two")
    assert [path for path in first if path.endswith("adapter_model.safetensors")]


def test_a_build_does_not_overwrite_a_hub(tmp_path):
    (tmp_path / "hub").mkdir()
    with pytest.raises(FileExistsError, match="hub"):
        build(tmp_path, SMOKE, say=lambda _: None)
