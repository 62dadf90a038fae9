"""Every example of docs/python-api.md runs, and prints what the page says."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_examples_of_the_page_print_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REBASE_HUB_DIR", str(ROOT / "examples" / "hub"))
    monkeypatch.chdir(tmp_path)
    page = str(ROOT / "docs" / "python-api.md")
    result = doctest.testfile(page, module_relative=False, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted > 8
    assert result.failed == 0
