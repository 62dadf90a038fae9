"""The bundled hub: small, complete, loadable, and as good as its page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.evaluate import held_out_loss, sample_answers
from examples.pool import BASES, build_pool_body, get_anchor_repo
from examples.text.formats import TASKS, generate_task_examples, parse_statement
from examples.text.queries import generate_examples, write_task
from rebase.hub.local import LocalHub
from rebase.schemas.repos import RepoRef

_EXAMPLES = Path(__file__).parents[2] / "examples"
_TASK = _EXAMPLES / "tasks" / "harbor-sql.jsonl"
_MODELS = ("harbor-1", "harbor-2", "lantern-1")
_ANCHORS = [get_anchor_repo(task, base).removeprefix("tiny/") for task in TASKS for base in BASES]
_REPOS = (*_MODELS, "harbor-sql-lora", *_ANCHORS)


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


@pytest.mark.parametrize("name", _REPOS)
def test_every_bundled_repo_says_what_it_is_and_under_which_licence(name):
    card = (_folder(name) / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "examples/build.py" in card or "examples/pool.py" in card


@pytest.mark.parametrize("name", _REPOS)
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
    written = sample_answers(_folder("harbor-1"), _folder("harbor-sql-lora"), _TASK, 20)
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


def test_the_bundled_pool_names_a_pair_of_bundled_adapters_for_every_task():
    body = json.loads((_EXAMPLES / "anchor-pool.json").read_text())
    assert body == build_pool_body()
    named = {anchor[side]["repo_id"] for anchor in body["anchors"] for side in ("source", "target")}
    assert named == {f"tiny/{name}" for name in _ANCHORS}
    for number, base in enumerate(BASES, start=1):
        config = json.loads((_folder(f"harbor-json-lora-{number}") / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == f"tiny/{base}"


def test_anchors_have_learned_their_task(tmp_path):
    """A few held-out questions of one task per base: far below the base's own loss."""
    task = TASKS[0]
    path = tmp_path / "task.jsonl"
    write_task(path, generate_task_examples(task, "held-out", 12, 11))
    for base in BASES:
        adapter = _folder(get_anchor_repo(task, base).removeprefix("tiny/"))
        assert held_out_loss(_folder(base), adapter, path) < held_out_loss(_folder(base), None, path) - 3


def test_every_task_writes_the_same_query_in_its_own_way():
    item = generate_examples("train", 1, 3)[0]
    query = parse_statement(item.answer)
    answers = {task.name: generate_task_examples(task, "train", 1, 3)[0] for task in TASKS}
    assert len({example.answer for example in answers.values()}) == len(TASKS)
    for name, example in answers.items():
        assert example.prompt == item.prompt.removesuffix("SQL:") + f"{name}:"
        assert query.column in example.answer
        assert all(column in example.answer for column, _ in query.filters)
    with pytest.raises(ValueError, match="not a statement"):
        parse_statement(" DROP TABLE arrivals;")
