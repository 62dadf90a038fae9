"""Everything about a method stands in its own folder: nobody else asks which method it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from rebase.methods.params import PARAMS_BY_NAME

ROOT = Path(__file__).parents[2]
CLASSES = {params.__name__ for params in PARAMS_BY_NAME.values()}
NAMES = set(PARAMS_BY_NAME)
# Words that are also something else: a device, an evaluation metric, the shape of a learning rate's decay.
OTHER_MEANINGS = {
    "auto": {"rebase/settings.py", "rebase/runtime.py"},
    "difference": {
        "rebase/cli/tables.py",
        "rebase/evaluation/compare.py",
        "rebase/evaluation/evaluate.py",
        "rebase/report/schema.py",
        "rebase/report/tables.py",
        "service/campaign_report.py",
    },
    "linear": {"rebase/training/loop.py"},
}


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for package in ("rebase", "service", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            in_folder_of_a_method = relative.parts[:2] == ("rebase", "methods") and len(relative.parts) == 4
            if not in_folder_of_a_method:
                yield relative.as_posix(), ast.parse(path.read_text("utf-8"))


def _tested_classes(node: ast.Call) -> set[str]:
    return {
        name.id for argument in node.args[1:] for name in ast.walk(argument) if isinstance(name, ast.Name)
    }


def test_nobody_asks_for_the_class_of_a_methods_parameters() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in _sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"isinstance", "issubclass"}
        and _tested_classes(node) & CLASSES
    ]
    assert found == []


def test_nobody_spells_a_methods_name() -> None:
    found = [
        f"{path}:{node.lineno} {node.value}"
        for path, tree in _sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in NAMES
        and path not in OTHER_MEANINGS.get(node.value, set())
    ]
    assert found == []
