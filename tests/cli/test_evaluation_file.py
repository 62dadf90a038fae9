"""`--evaluate FILE`: examples or the whole request in a file, --set on top, a table at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rebase.cli.request import build_request
from rebase.errors import RequestInvalid
from rebase.hub.local import LocalHub
from rebase.schemas.repos import RepoRef
from rebase.schemas.validation import read_evaluation
from support.command import Command

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = (EXAMPLES / "tasks" / "harbor-sql.jsonl").read_text().splitlines()[:8]
ONE = {"prompt": "2 + 2 =", "answer": " 4"}


def _file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def _request(found: dict[str, Any], *settings: str) -> Any:
    return build_request(adapter="a/b", target="c/d", settings=settings, evaluate=found).evaluate


def test_lines_are_examples_and_json_is_the_whole_object(tmp_path: Path) -> None:
    lines = _file(tmp_path, "a.jsonl", json.dumps(ONE) + "\n\n" + json.dumps({"text": "Once."}) + "\n")
    assert len(_request(read_evaluation(lines)).examples) == 2
    whole = _file(tmp_path, "a.json", json.dumps({"examples": [ONE], "seed": 5, "max_tokens": 9}))
    found = _request(read_evaluation(whole), "evaluate.max_tokens=3", 'evaluate.refusals.prompts=["a"]')
    assert (found.seed, found.max_tokens, found.refusals.prompts) == (5, 3, ("a",))


def test_settings_alone_can_ask_for_an_evaluation() -> None:
    request = build_request(adapter="a/b", target="c/d", settings=['evaluate.tasks=["arc_easy"]'])
    assert request.evaluate is not None and request.evaluate.tasks == ("arc_easy",)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"text": "ab"}\n{broken\n', "JSON in line 2"),
        ("a.json", "[1, 2]", "not a JSON object"),
        ("a.json", "{", "not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(RequestInvalid, match=says) as caught:
        read_evaluation(_file(tmp_path, name, text))
    assert caught.value.pointer == "/evaluate"
    assert name in str(caught.value)
    with pytest.raises(RequestInvalid, match="cannot be read"):
        read_evaluation(tmp_path / "nowhere.json")


def test_a_wrong_example_is_pointed_at() -> None:
    with pytest.raises(RequestInvalid) as caught:
        _request({"examples": [ONE, {"prompt": "a", "choices": ["b", "c"], "label": 9}]})
    assert caught.value.pointer == "/evaluate/examples/1/label"


def test_transfer_measures_shows_a_table_and_keeps_the_report(
    tmp_path: Path, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    file = _file(tmp_path, "task.jsonl", "\n".join(LINES))
    asked = ("tiny/harbor-sql-lora", "--target", "tiny/harbor-2", "--hub", str(EXAMPLES / "hub"))
    options = ("--method", "copy", "--evaluate", str(file), "--set", "evaluate.score=likelihood")
    done = rebase("transfer", *asked, *options, "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    assert "score (likelihood)" in done.out and "target + transferred adapter" in done.out
    report = json.loads((tmp_path / "out" / "rebase_report.json").read_text())
    assert report["evaluation"]["score"] == "likelihood"


def test_a_refusal_by_measurement_exits_as_incompatible_and_leaves_no_folder(
    tmp_path: Path, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    hub = LocalHub(EXAMPLES / "hub")
    pinned = hub.resolve(RepoRef(repo_id="tiny/harbor-sql-lora"))
    adapter = tmp_path / "harmful"
    shutil.copytree(hub.fetch(pinned, "adapter_config.json").parent, adapter)
    path = adapter / "adapter_model.safetensors"
    save_file({name: -one if "lora_B" in name else one for name, one in load_file(path).items()}, path)
    asked = (str(adapter), "--source", "tiny/harbor-1", "--target", "tiny/harbor-2")
    asked = (*asked, "--hub", str(EXAMPLES / "hub"), "--method", "copy", "--set", "evaluate.score=likelihood")
    out, report = tmp_path / "out", tmp_path / "report.json"
    file = _file(tmp_path, "task.jsonl", "\n".join(LINES))
    done = rebase("transfer", *asked, "--evaluate", str(file), "--out", str(out), "--report", str(report))
    assert done.code == 3, done.out + done.err
    assert "worse than the target alone" in done.err
    assert "target alone" in done.out
    assert not out.exists()
    assert json.loads(report.read_text())["evaluation"]["score"] == "likelihood"


def test_a_pre_check_takes_no_evaluation(rebase: Command) -> None:
    for place in ((), ("--local",)):
        settings = ("--set", 'evaluate.tasks=["arc_easy"]', *place)
        done = rebase("precheck", "a/b", "--target", "c/d", *settings)
        assert done.code == 2
        assert "nothing to evaluate" in done.err
