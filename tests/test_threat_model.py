"""The threat model names a test for each threat; a test that is named exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in {"threat", "---"}]


def _tests_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_threat_has_a_defence_and_a_test() -> None:
    rows = [row for part in PAGE.split("\n## ") for row in _rows(part)]

    assert len(rows) > 30
    for row in rows:
        assert len(row) == 3, row
        assert all(row), row
        assert _NAMED.search(row[2]), f"no test is named for: {row[0]}"


def test_every_test_that_is_named_exists() -> None:
    named = _NAMED.findall(PAGE)
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or name not in _tests_in(ROOT / path)
    ]

    assert named
    assert missing == []
