"""The bundled hub: small, complete, loadable, and as good as its page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.requests import RepoRef
from examples.evaluate import held_out_loss, samples
from workers.hub.local import LocalHub

_EXAMPLES = Path(__file__).parents[2] / "examples"
_TASK = _EXAMPLES / "tasks" / "harbor-sql.jsonl"
_MODELS = ("harbor-1", "harbor-2", "lantern-1")


@pytest.fixture(scope="module")
def losses() -> dict[str, float]:
    return json.loads((_EXAMPLES / "losses.json").read_text())


def _folder(name: str) -> Path:
    """The files of a bundled repo, found the way the pipeline finds them."""
    hub = LocalHub(_EXAMPLES / "hub")
    pinned = hub.resolve(RepoRef(repo_id=f"tiny/{name}"))
    return hub.fetch(pinned, "README.md").parent


def test_the_bundled_hub_stays_under_ten_megabytes():
    assert sum(file.stat().st_size for file in (_EXAMPLES / "hub").rglob("*")) < 10_000_000


@pytest.mark.parametrize("name", [*_MODELS, "harbor-sql-lora"])
def test_every_bundled_repo_says_what_it_is_and_under_which_licence(name):
    card = (_folder(name) / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "examples/build.py" in card


@pytest.mark.parametrize("name", [*_MODELS, "harbor-sql-lora"])
def test_every_bundled_file_is_what_its_commit_says(name):
    hub = LocalHub(_EXAMPLES / "hub")
    pinned = hub.resolve(RepoRef(repo_id=f"tiny/{name}"))
    assert {path: hub.fetch(pinned, path).stat().st_size for path in pinned.files} == pinned.files


@pytest.mark.parametrize("name", _MODELS)
def test_a_bundled_model_has_the_loss_that_was_recorded(name, losses):
    assert held_out_loss(_folder(name), None, _TASK) == pytest.approx(losses[name], abs=0.02)


def test_the_bundled_adapter_has_a_visible_effect(losses):
    measured = held_out_loss(_folder("harbor-1"), _folder("harbor-sql-lora"), _TASK)
    assert measured == pytest.approx(losses["harbor-1 + adapter"], abs=0.02)
    assert measured < losses["harbor-1"] - 3


def test_the_bundled_adapter_writes_the_statements_that_were_asked_for():
    """Up to "more than" and "less than", which so small a model mixes up."""
    written = samples(_folder("harbor-1"), _folder("harbor-sql-lora"), _TASK, 20)
    alike = [item.answer.replace("<", ">") == answer.replace("<", ">") for item, answer in written]
    assert sum(alike) >= 18
    assert sum(item.answer == answer for item, answer in written) >= 10


def test_copying_the_adapter_to_the_new_release_recovers_most_of_the_gap(losses):
    copied = held_out_loss(_folder("harbor-2"), _folder("harbor-sql-lora"), _TASK)
    gap = losses["harbor-2"] - losses["harbor-2 + native adapter"]
    assert (losses["harbor-2"] - copied) / gap >= 0.7


def test_the_page_gives_the_recorded_losses(losses):
    page = (_EXAMPLES / "README.md").read_text()
    missing = [name for name, loss in losses.items() if f"| {name} | {loss:.2f} |" not in page]
    assert missing == []


def test_the_text_has_a_note_on_its_origin():
    note = (_EXAMPLES / "text" / "README.md").read_text()
    files = {path.name for path in (_EXAMPLES / "text").rglob("*") if path.suffix in (".py", ".txt")}
    assert {name for name in files - {"__init__.py"} if name not in note} == set()
