"""An evaluation inside a run, on the bundled bases: what it finds, what it refuses, and when."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import Kind, plan_conversion
from rebase.errors import Cancelled, RebaseError, Rejected, TransferError, WorseThanTarget, to_public_error
from rebase.evaluation.evaluate import make_random_control
from rebase.hub.local import LocalHub
from rebase.lora.linalg import frobenius
from rebase.report.progress import NullReporter
from rebase.report.schema import NOT_EVALUATED, Evaluation, Metric, Report
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.repos import RepoRef
from rebase.schemas.states import Phase
from support.tiny_repos import edit_json

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = (EXAMPLES / "tasks" / "harbor-sql.jsonl").read_text().splitlines()
ITEMS = [json.loads(line) for line in LINES]
SQL = "tiny/harbor-sql-lora"


class Seen(NullReporter):
    """What a watch was told."""

    def __init__(self, stop: Callable[[Phase, int], bool] = lambda phase, done: False) -> None:
        self.phases: list[Phase] = []
        self.report: Report | None = None
        self.progress: list[tuple[int, int | None, str | None]] = []
        self._stop = stop

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        self.phases.append(phase)
        if phase is Phase.EVALUATING:
            self.progress.append((done, total, unit))
        if self._stop(phase, done):
            raise Cancelled("Stopped.")

    def report_evidence(self, report: Report) -> None:
        self.report = report


def _folder(repo_id: str) -> Path:
    """Its files as one would find them on the Hub."""
    local = LocalHub(EXAMPLES / "hub")
    pinned = local.resolve(RepoRef(repo_id=repo_id))
    return local.fetch(pinned, next(iter(pinned.files))).parent


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled repos, an oracle on the new release, an adapter that harms, and a base without words."""
    root = tmp_path_factory.mktemp("hub")
    for name in ("harbor-1", "harbor-2", "lantern-1", "harbor-sql-lora"):
        shutil.copytree(_folder(f"tiny/{name}"), root / "tiny" / name)
    shutil.copytree(root / SQL, root / "tiny" / "oracle")
    edit_json(root / "tiny" / "oracle" / "adapter_config.json", base_model_name_or_path="tiny/harbor-2")
    shutil.copytree(root / SQL, root / "tiny" / "harmful")
    path = root / "tiny" / "harmful" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: -one if "lora_B" in name else one for name, one in tensors.items()}, path)
    shutil.copytree(root / "tiny" / "harbor-2", root / "tiny" / "mute")
    (root / "tiny" / "mute" / "tokenizer.json").unlink()
    return root


def _run(
    hub: Path,
    tmp_path: Path,
    evaluate: dict[str, Any],
    watch: NullReporter | None = None,
    kind: Kind = "convert",
    **changes: Any,
) -> ConversionResult:
    body = {
        "adapter": {"repo_id": SQL},
        "source": {"repo_id": "tiny/harbor-1"},
        "target": {"repo_id": "tiny/harbor-2"},
        "method": "copy",
        "evaluate": evaluate,
        **changes,
    }
    tools = Runtime(
        LocalHub(hub),
        FactorCache(tmp_path / "cache", 2**28),
        torch.device("cpu"),
        scratch_dir=tmp_path / "scratch",
    )
    request = ConversionRequest.model_validate(body)
    found = run_conversion(
        plan_conversion(request, kind), tools, watch or NullReporter(), tmp_path / "out", marker=None
    )
    assert isinstance(found, ConversionResult)
    return found


def _figure(found: Evaluation, subject: Any, metric: str) -> Metric:
    figure = found.find_metric(subject, metric)
    assert figure is not None, (subject, metric)
    return figure


def test_a_copy_to_the_new_release_beats_nothing_and_noise(hub: Path, tmp_path: Path) -> None:
    seen = Seen()
    prompts = ["Who came in April?", "Say nothing."]
    found = _run(
        hub,
        tmp_path,
        {
            "examples": [*ITEMS[:40], {"text": "The brig came in from Riga with hemp."}],
            "oracle": {"repo_id": "tiny/oracle"},
            "refusals": {"prompts": prompts, "tokens": 8},
        },
        seen,
    )
    told = found.report.evaluation
    assert told is not None
    assert (told.score, told.examples) == ("accuracy", {"generation": 40, "text": 1})
    for metric in ("difference", "over_random", "score"):
        figure = _figure(told, "moved", metric)
        assert figure.low is not None and figure.low > 0.0
        assert figure.n == 40
    home, alone = _figure(told, "source_adapter", "score"), _figure(told, "source", "score")
    moved, target = _figure(told, "moved", "score"), _figure(told, "target", "score")
    values = [one.value for one in (home, alone, moved, target)]
    assert None not in values
    assert values[0] > values[2] > values[3]  # type: ignore[operator]
    kept = _figure(told, "moved", "retention")
    share = (values[2] - values[3]) / (values[0] - values[1])  # type: ignore[operator]
    assert kept.value == pytest.approx(share)
    assert kept.low is not None and kept.high is not None and 0.0 < kept.low < share < kept.high < 1.0
    # The oracle holds the very update that was copied, before it was rounded.
    gap = _figure(told, "moved", "gap_recovered")
    assert gap.value == pytest.approx(1.0, abs=0.1)
    assert told.oracle is not None and told.oracle.repo_id == "tiny/oracle"
    assert [_figure(told, one, "refusal_rate").n for one in ("target", "moved", "source_adapter")] == [2] * 3
    assert _figure(told, "moved", "safety_drift").value == 0.0
    assert _figure(told, "moved", "text_nats_per_byte").n == 1

    assert NOT_EVALUATED not in found.report.caveats
    assert seen.progress[-1] == (7 * 41 + 3 * 2, 7 * 41 + 3 * 2, "examples")
    assert seen.report == found.report
    assert found.folder is not None
    card = (found.folder / "README.md").read_text()
    assert "The transferred adapter helps" in card and "target + random noise" in card
    written = Report.model_validate_json((found.folder / "rebase_report.json").read_text())
    assert written == found.report


def test_the_same_request_gives_the_same_report(hub: Path, tmp_path: Path) -> None:
    asked = {"examples": ITEMS[:8], "score": "likelihood", "bootstrap": 200}
    first, second = (_run(hub, tmp_path / name, asked) for name in "ab")
    assert first.report.to_json() == second.report.to_json()


def test_what_makes_the_target_worse_is_not_published_and_the_figures_say_why(
    hub: Path, tmp_path: Path
) -> None:
    asked = {"examples": ITEMS[:12], "score": "likelihood"}
    seen = Seen()
    with pytest.raises(WorseThanTarget, match="scores worse than the target alone") as caught:
        _run(hub, tmp_path / "a", asked, seen, adapter={"repo_id": "tiny/harmful"})
    assert isinstance(caught.value, Rejected)
    error = to_public_error(caught.value)
    assert (error.code, error.pointer) == ("worse_than_target", "/evaluate")
    assert "on_worse" in str(error.hint)
    assert seen.report is not None and seen.report.evaluation is not None
    difference = _figure(seen.report.evaluation, "moved", "difference")
    assert difference.high is not None and difference.high < 0.0

    warned = _run(hub, tmp_path / "b", {**asked, "on_worse": "warn"}, adapter={"repo_id": "tiny/harmful"})
    assert warned.folder is not None
    assert any("worse than the target alone" in line for line in warned.report.caveats)
    assert any("no better than random" in line for line in warned.report.caveats)
    assert "The transferred adapter harms" in (warned.folder / "README.md").read_text()
    # On its own base it harms too, so there is no skill of which a share could be kept.
    assert "below 0.05" in str(_figure(warned.report.evaluation, "moved", "retention").reason)  # type: ignore[arg-type]


def test_few_examples_warn_and_never_refuse(hub: Path, tmp_path: Path) -> None:
    asked = {"examples": ITEMS[:7], "score": "likelihood", "controls": []}
    found = _run(hub, tmp_path, asked, adapter={"repo_id": "tiny/harmful"})
    assert any("Only 7 example(s)" in line for line in found.report.caveats)
    assert found.report.evaluation is not None
    assert {one.subject for one in found.report.evaluation.figures} == {
        "target",
        "moved",
        "source",
        "source_adapter",
    }


def test_an_oracle_that_learnt_nothing_leaves_the_gap_undefined_and_the_job_alone(
    hub: Path, tmp_path: Path
) -> None:
    shutil.copytree(hub / "tiny", tmp_path / "hub" / "tiny")
    path = tmp_path / "hub" / "tiny" / "oracle" / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(one) for name, one in load_file(path).items()}, path)
    asked = {"examples": ITEMS[:8], "score": "likelihood", "oracle": {"repo_id": "tiny/oracle"}}
    found = _run(tmp_path / "hub", tmp_path, asked)
    assert found.report.evaluation is not None
    gap = _figure(found.report.evaluation, "moved", "gap_recovered")
    assert gap.value is None and "at least 0.05" in str(gap.reason)


def test_across_widths_the_pad_control_runs_and_the_report_is_finite(hub: Path, tmp_path: Path) -> None:
    asked = {"examples": ITEMS[:8], "score": "likelihood", "on_worse": "warn"}
    found = _run(
        hub,
        tmp_path,
        asked,
        target={"repo_id": "tiny/lantern-1"},
        method={"name": "cross_lora"},
        precheck={"on_incompatible": "warn"},
    )
    assert found.report.evaluation is not None
    assert _figure(found.report.evaluation, "pad", "score").value is not None
    assert Report.model_validate_json(found.report.to_json()) == found.report


def test_noise_has_the_norm_and_the_rank_of_what_it_stands_for() -> None:
    from support.bundled import sql_adapter

    deltas = sql_adapter()
    noise = make_random_control(deltas, 7)
    assert noise.keys() == deltas.keys()
    for site, delta in deltas.items():
        assert frobenius(noise[site]) == pytest.approx(frobenius(delta), rel=1e-5)
        assert (noise[site].shape, noise[site].rank) == (delta.shape, delta.rank)
    again, other = make_random_control(deltas, 7), make_random_control(deltas, 8)
    first = next(iter(deltas))
    assert torch.equal(noise[first].B, again[first].B)
    assert not torch.equal(noise[first].B, other[first].B)


def test_an_evaluation_can_be_cancelled(hub: Path, tmp_path: Path) -> None:
    seen = Seen(lambda phase, done: phase is Phase.EVALUATING and done >= 8)
    with pytest.raises(Cancelled):
        _run(hub, tmp_path, {"examples": ITEMS[:8], "score": "likelihood"}, seen)
    assert seen.progress[-1][0] == 8


@pytest.mark.parametrize(
    ("evaluate", "changes", "code", "pointer"),
    [
        ({"oracle": {"repo_id": "tiny/nobody"}}, {}, "repo_not_found", "/evaluate/oracle"),
        ({"oracle": {"repo_id": SQL}}, {}, "request_invalid", "/evaluate/oracle"),
        ({"oracle": {"repo_id": "tiny/harbor-2"}}, {}, "file_missing", "/evaluate/oracle"),
        (
            {"oracle": {"repo_id": "tiny/oracle"}},
            {"target": {"repo_id": "tiny/lantern-1"}},
            "malformed_adapter",
            "/evaluate/oracle",
        ),
        (
            {"refusals": {"dataset": {"repo_id": "tiny/no-data"}}},
            {},
            "repo_not_found",
            "/evaluate/refusals/dataset",
        ),
        ({}, {"target": {"repo_id": "tiny/mute"}}, "request_invalid", "/target"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_work(
    hub: Path, tmp_path: Path, evaluate: dict[str, Any], changes: dict[str, Any], code: str, pointer: str
) -> None:
    seen = Seen()
    with pytest.raises((RebaseError, TransferError)) as caught:
        _run(hub, tmp_path, {"examples": ITEMS[:1], **evaluate}, seen, **changes)
    error = to_public_error(caught.value)
    assert (error.code, error.pointer) == (code, pointer), error
    assert Phase.PRECHECKING not in seen.phases


def test_a_pre_check_evaluates_nothing_and_says_so(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(RebaseError, match="does not convert anything") as caught:
        _run(hub, tmp_path, {"examples": ITEMS[:1]}, kind="precheck")
    assert to_public_error(caught.value).pointer == "/evaluate"
