"""Named tasks through the real lm-evaluation-harness, over our own running models."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from billiard.exceptions import SoftTimeLimitExceeded

from examples.text.queries import read_task
from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import Cancelled, NotAvailable, RequestInvalid, TrainingFailed
from rebase.evaluation.loglikelihood import TextScorer
from rebase.evaluation.prepare import load_harness
from rebase.evaluation.scoring import ExampleProgress, apply_deltas
from rebase.evaluation.tasks import TaskScores
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.evaluation import EvaluationSpec
from support.bundled import bundled, sql_adapter
from support.harness_tasks import ANSWER, CHOICE, ROLLING, write_tasks

EXAMPLES = Path(__file__).parents[2] / "examples"
ITEMS = read_task(EXAMPLES / "tasks" / "harbor-sql.jsonl")[:20]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), ITEMS)


def _scores(folder: Path, deltas: Any, **spec: Any) -> dict[str, TaskScores]:
    base = bundled("harbor-2").text
    chosen = load_harness(EvaluationSpec.model_validate(spec), folder)
    with apply_deltas(base, deltas):
        return dict(chosen.run(base, ExampleProgress(NullReporter())))


def test_the_harness_finds_what_one_finds_by_hand(tasks: Path) -> None:
    found = _scores(tasks, sql_adapter(), tasks=[CHOICE, ANSWER, ROLLING], limit=12)
    base = bundled("harbor-2").text
    reader = TextScorer(base, separator_as_bos=False)
    with apply_deltas(base, sql_adapter()):
        wrote = reader.generate_until([item.prompt for item in ITEMS[:12]], 64)
        right = [
            float(text.partition("\n")[0].strip() == item.answer.strip())
            for text, item in zip(wrote, ITEMS, strict=False)
        ]
        whole = [item.prompt + item.answer for item in ITEMS[:12]]
        costs = TextScorer(base).loglikelihood([("", text) for text in whole])
    nats, size = sum(cost.nats for cost in costs), sum(len(text.encode()) for text in whole)

    assert found[f"{CHOICE}/acc"].per_document == (1.0,) * 12
    assert found[f"{ANSWER}/exact_match"].per_document == tuple(right)
    perplexity = found[f"{ROLLING}/byte_perplexity"]
    assert perplexity.value == pytest.approx(math.exp(nats / size), rel=1e-4)
    assert (perplexity.per_document, perplexity.higher_is_better) == ((), False)


def test_the_same_tasks_can_be_run_again_with_another_update(tasks: Path) -> None:
    base = bundled("harbor-2").text
    chosen = load_harness(EvaluationSpec(tasks=(CHOICE,), limit=6, num_fewshot=2), tasks)
    alone = chosen.run(base, ExampleProgress(NullReporter()))
    with apply_deltas(base, sql_adapter()):
        moved = chosen.run(base, ExampleProgress(NullReporter()))
    assert chosen.run(base, ExampleProgress(NullReporter())) == alone != moved
    assert chosen.tasks[0].num_fewshot == 2


def test_a_task_beside_another_keeps_the_length_of_its_own_answers(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", ITEMS)
    text = (folder / f"{ANSWER}.yaml").read_text()
    brief = text.replace(ANSWER, "rebase_brief").replace("max_gen_toks: 64", "max_gen_toks: 2")
    (folder / "rebase_brief.yaml").write_text(brief)
    together = _scores(folder, sql_adapter(), tasks=["rebase_brief", ANSWER], limit=6)
    assert sum(together[f"{ANSWER}/exact_match"].per_document) > 0.0
    assert sum(together["rebase_brief/exact_match"].per_document) == 0.0


def test_a_text_longer_than_the_context_is_read_in_windows(tmp_path: Path) -> None:
    long = [replace(ITEMS[0], answer=" ".join(item.answer for item in ITEMS) * 3)]
    folder = write_tasks(tmp_path / "tasks", long)
    found = _scores(folder, {}, tasks=[ROLLING])
    assert math.isfinite(found[f"{ROLLING}/byte_perplexity"].value)


def test_without_examples_the_first_task_decides(tasks: Path, tmp_path: Path) -> None:
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": "tiny/harbor-sql-lora"},
            "target": {"repo_id": "tiny/harbor-2"},
            "evaluate": {"tasks": [CHOICE, ROLLING], "limit": 10, "bootstrap": 200},
        }
    )
    hub = LocalHub(EXAMPLES / "hub")
    tools = Runtime(hub, FactorCache(tmp_path / "cache", 2**28), torch.device("cpu"), tasks_dir=tasks)
    done = run_conversion(
        plan_conversion(request, "convert"), tools, NullReporter(), tmp_path / "out", marker=None
    )
    assert isinstance(done, ConversionResult)
    told = done.report.evaluation
    assert told is not None and told.score == f"{CHOICE}/acc"
    assert [(task.name, task.documents) for task in told.tasks] == [(CHOICE, 10), (ROLLING, 10)]
    difference = told.find_metric("moved", "difference")
    assert difference is not None and (difference.value, difference.low) == (1.0, 1.0)
    perplexity = told.find_metric("moved", f"{ROLLING}/byte_perplexity")
    assert perplexity is not None and perplexity.value is not None and perplexity.low is None


@pytest.mark.timeout(600)  # the harness reads thousands of its own files, once
def test_a_name_that_the_registry_does_not_have_is_refused_with_some_that_it_has(tasks: Path) -> None:
    with pytest.raises(RequestInvalid, match="no task 'rebase_choic'") as caught:
        load_harness(EvaluationSpec(tasks=(ANSWER, "rebase_choic")), tasks)
    assert caught.value.pointer == "/evaluate/tasks/1"
    assert CHOICE in str(caught.value.hint)


@pytest.mark.parametrize(
    "changes",
    ["unsafe_code: true\n", "metric_list:\n  - metric: a_script_of_the_hub\n    aggregation: mean\n"],
)
def test_a_task_that_would_run_code_is_refused(tmp_path: Path, changes: str) -> None:
    folder = write_tasks(tmp_path / "tasks", ITEMS[:2])
    path = folder / f"{ANSWER}.yaml"
    text = path.read_text()
    if "metric_list" in changes:
        text = text[: text.index("metric_list")]
    path.write_text(text + changes)
    with pytest.raises(RequestInvalid, match="could not run") as caught:
        load_harness(EvaluationSpec(tasks=(ANSWER,)), folder)
    assert caught.value.pointer == "/evaluate/tasks"


def _broken(folder: Path, old: str, new: str) -> Path:
    """The tasks, and of the one with answers a copy that fails in a way of its own."""
    write_tasks(folder, ITEMS[:2])
    path = folder / f"{ANSWER}.yaml"
    text = path.read_text()
    assert old in text
    (folder / "rebase_broken.yaml").write_text(text.replace(ANSWER, "rebase_broken").replace(old, new))
    return folder


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{prompt}}", "{{prompt.no.such}}"),  # jinja2.UndefinedError
        ("{{prompt}}", "{{prompt"),  # jinja2.TemplateSyntaxError
        ("{{answer}}", "{{ [] | first | upper }}"),
        ("test_split: test", "test_split: no_such_split"),
        ("output_type: generate_until", "output_type: no_such_type"),  # AssertionError
        ("    test: ", "    test: /no/such"),
    ],
)
def test_whatever_a_task_fails_with_is_about_the_task(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(RequestInvalid, match=r"could not run .*rebase_broken") as caught:
        _scores(_broken(tmp_path / "tasks", old, new), {}, tasks=["rebase_broken"])
    assert caught.value.pointer == "/evaluate/tasks"


def test_a_task_that_cannot_be_loaded_is_named_alone(tmp_path: Path) -> None:
    folder = _broken(tmp_path / "tasks", "output_type: generate_until", "output_type: no_such_type")
    with pytest.raises(RequestInvalid, match="could not run rebase_broken: ") as caught:
        _scores(folder, {}, tasks=[CHOICE, "rebase_broken"])
    assert str(tmp_path) not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("raised", "wanted"),
    [
        (IndexError("list index out of range"), RequestInvalid),
        (AssertionError(), RequestInvalid),
        (KeyError("question"), RequestInvalid),
        (Cancelled("Stopped."), Cancelled),
        (SoftTimeLimitExceeded(), SoftTimeLimitExceeded),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError),
        (TrainingFailed("no numbers"), TrainingFailed),
    ],
)
def test_an_error_inside_a_run_is_the_tasks_unless_it_is_the_jobs_own(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    raised: Exception, wanted: type[Exception],
) -> None:  # fmt: skip
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise raised

    monkeypatch.setattr("rebase.evaluation.lm_eval.simple_evaluate", fail)
    with caplog.at_level("INFO", "rebase.evaluation.lm_eval"), pytest.raises(wanted) as caught:
        _scores(tasks, {}, tasks=[CHOICE, ANSWER])
    if wanted is RequestInvalid:
        assert caught.value.pointer == "/evaluate/tasks"
        assert f"could not run {CHOICE}, {ANSWER}: {type(raised).__name__}." in caught.value.message
        assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [raised]


def test_a_worker_without_the_harness_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rebase.evaluation.lm_eval", None)
    with pytest.raises(NotAvailable, match="does not have") as caught:
        load_harness(EvaluationSpec(tasks=("arc_easy",)), None)
    assert caught.value.pointer == "/evaluate/tasks"
    assert "pip install" in str(caught.value.hint)
