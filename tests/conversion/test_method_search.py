"""`auto` by measurement, on the bundled trained bases: what is kept, what is refused, and what is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from examples.text.queries import generate_examples
from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.corpus.load import load_corpus
from rebase.errors import NotFound, NothingBetter
from rebase.hub.local import LocalHub
from rebase.methods.activation.method import Activation
from rebase.methods.activation.params import ActivationParams
from rebase.methods.base_params import SamplingParams
from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.report.selection import CandidateRow, Selection
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from support.rotated_model import turned, without_gains

EXAMPLES = Path(__file__).parents[2] / "examples"
TASK = [json.loads(line) for line in (EXAMPLES / "tasks" / "harbor-sql.jsonl").read_text().splitlines()]
LIKELY = {"examples": TASK[:16], "score": "likelihood", "controls": []}
RIGHT = {"examples": TASK[:16], "controls": []}
QUICK = ["copy", "linear", "cross_lora"]


class Told(NullReporter):
    """A watch that remembers the reports and the phases."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.units: set[tuple[Phase, str | None]] = set()

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        assert total is None or done <= total
        self.units.add((phase, unit))

    def report_evidence(self, report: Report) -> None:
        self.reports.append(report)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundled repos, and harbor-1 in other coordinates as tiny/turned."""
    root = tmp_path_factory.mktemp("hub")
    for name in ("harbor-1", "harbor-2", "lantern-1", "harbor-sql-lora"):
        shutil.copytree(EXAMPLES / "hub" / "tiny" / name, root / "tiny" / name)
    (files,) = (root / "tiny" / "harbor-1" / "revisions").iterdir()
    model = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    turned(without_gains(model), seed=50).save_pretrained(root / "tiny" / "turned")
    shutil.copy(files / "tokenizer.json", root / "tiny" / "turned")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FactorCache]:
    yield FactorCache(tmp_path_factory.mktemp("cache"), 2**28)


@pytest.fixture
def tools(hub: Path, cache: FactorCache, tmp_path: Path) -> Runtime:
    return Runtime(LocalHub(hub), cache, torch.device("cpu"), scratch_dir=tmp_path / "scratch")


def moved(
    tools: Runtime,
    out: Path,
    target: str = "harbor-2",
    watch: NullReporter | None = None,
    file: Path | None = None,
    **body: Any,
) -> ConversionResult:
    request = ConversionRequest.model_validate(
        {
            "adapter": {"repo_id": "tiny/harbor-sql-lora"},
            "source": {"repo_id": "tiny/harbor-1"},
            "target": {"repo_id": f"tiny/{target}"},
            "output": {"dtype": "float32"},
            **body,
        }
    )
    found = run_conversion(
        plan_conversion(request, "convert", corpus_file=file),
        tools,
        watch or NullReporter(),
        out,
        marker=None,
    )
    assert isinstance(found, ConversionResult)
    return found


@pytest.fixture(scope="module")
def chosen(hub: Path, cache: FactorCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What choosing among three methods by likelihood publishes."""
    return _published(hub, cache, tmp_path_factory.mktemp("chosen"), method=auto(*QUICK), evaluate=LIKELY)


@pytest.fixture(scope="module")
def copied(hub: Path, cache: FactorCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `copy` alone publishes."""
    return _published(hub, cache, tmp_path_factory.mktemp("copied"), method="copy")


def _published(hub: Path, cache: FactorCache, folder: Path, **body: Any) -> Path:
    tools = Runtime(LocalHub(hub), cache, torch.device("cpu"), scratch_dir=folder / "scratch")
    found = moved(tools, folder / "out", **body)
    assert found.folder is not None
    return found.folder


def auto(*candidates: Any, **more: Any) -> dict[str, Any]:
    return {"name": "auto", "candidates": list(candidates), **more}


def rows(found: Selection) -> dict[str, CandidateRow]:
    return {row.method["name"]: row for row in found.candidates}


def scores(found: Selection) -> dict[str, float]:
    return {name: row.score.value for name, row in rows(found).items() if row.score is not None}


def test_a_dataset_is_for_those_candidates_that_read_a_text(
    hub: Path, tools: Runtime, tmp_path: Path
) -> None:
    folder = hub / "datasets" / "acme" / "words"
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in load_corpus(None, None, tools.hub).documents[:12]]
    (folder / "train.jsonl").write_text("\n".join(lines))
    found = moved(
        tools,
        tmp_path / "out",
        method=auto("copy", {"name": "activation", "positions": 256}),
        corpus={"repo_id": "acme/words"},
        precheck={"activations": False},
        evaluate=LIKELY,
    )
    assert found.report.selection is not None
    assert scores(found.report.selection).keys() == {"copy", "activation"}


@pytest.fixture
def short_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step among the usual candidates learns from 800 tokens instead of 20,000, which took a minute."""
    maps, step = Activation().default_candidates(has_pool=False, allow_text=True, allow_training=False)
    assert (maps, step) == (ActivationParams(), ActivationParams(solve="step"))
    brief = step.model_copy(update={"written": SamplingParams(tokens=800, length=48)})
    monkeypatch.setattr(Activation, "default_candidates", lambda _self, **_: (maps, brief))


@pytest.mark.usefixtures("short_step")
def test_every_method_that_fits_is_run_and_the_best_is_kept_and_confirmed(
    tools: Runtime, tmp_path: Path
) -> None:
    watch, text = Told(), tmp_path / "text.txt"
    text.write_text("\n\n".join(load_corpus(None, None, tools.hub).documents[:12]))
    found = moved(tools, tmp_path / "out", watch=watch, file=text, evaluate=LIKELY)

    selection = found.report.selection
    assert selection is not None
    assert list(rows(selection)) == [
        *("copy", "linear", "prolora", "difference", "weight_average", "ties", "cross_lora"),
        *("geometric", "activation"),
    ]
    assert [row.method["solve"] for row in selection.candidates[-2:]] == ["maps", "step"]
    best = max(scores(selection), key=scores(selection).__getitem__)
    assert found.report.method_requested["name"] == "auto"
    assert found.report.method_used["name"] == best == "copy"
    assert selection.ending == "better"
    assert (selection.choosing, selection.confirming, selection.shared) == (8, 8, False)
    assert selection.confirmed is not None
    assert selection.confirmed.gain.low > 2.0
    assert {"measured"} == {r.code for r in found.report.precheck.reasons if "scores highest" in r.message}
    assert any("slightly optimistic" in line for line in found.report.caveats)
    assert (Phase.EVALUATING, "examples") in watch.units


def test_what_is_written_is_what_a_request_for_that_method_alone_writes(chosen: Path, copied: Path) -> None:
    name = "adapter_model.safetensors"
    assert (chosen / name).read_bytes() == (copied / name).read_bytes()


def test_the_same_request_gives_the_same_bytes(tools: Runtime, tmp_path: Path) -> None:
    for out in ("one", "two"):
        method = auto("copy", "cross_lora", dare={"p": "sweep"})
        moved(tools, tmp_path / out, method=method, evaluate=LIKELY)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_where_rules_choose_wrongly_measuring_finds_the_right_method(tools: Runtime, tmp_path: Path) -> None:
    """Equal shapes and a shared vocabulary, but other coordinates: the rules say cross_lora."""
    method = auto("copy", "cross_lora", {"name": "geometric", "positions": 4096})
    watch = Told()
    found = moved(tools, tmp_path / "out", "turned", watch, method=method, evaluate=LIKELY)

    assert watch.reports[0].method_used["name"] == "cross_lora"
    assert found.report.method_used["name"] == "geometric"
    selection = found.report.selection
    assert selection is not None
    measured = scores(selection)
    assert measured["geometric"] > measured["cross_lora"] + 0.05
    assert measured["cross_lora"] > measured["copy"] + 2.0
    assert rows(selection)["copy"].verdict == "incompatible"


def test_where_nothing_helps_nothing_is_published_and_the_table_says_why(
    tools: Runtime, tmp_path: Path
) -> None:
    watch = Told()
    with pytest.raises(NothingBetter, match=r"copy was not measured \(copy needs equal shapes") as caught:
        moved(
            tools,
            tmp_path / "out",
            "lantern-1",
            watch,
            method=auto(*QUICK),
            evaluate=RIGHT,
            precheck={"on_incompatible": "warn"},
        )
    assert "cross_lora 0.000 (incompatible)" in caught.value.message
    assert "method.train=true" in str(caught.value.hint)
    assert caught.value.pointer == "/method"
    assert not (tmp_path / "out").exists()
    told = watch.reports[-1].selection
    assert told is not None
    assert told.ending == "none_better"
    assert [row.reason is None for row in told.candidates] == [False, False, True]


def test_noise_that_raises_the_likelihood_between_strangers_is_not_published(
    tools: Runtime, tmp_path: Path
) -> None:
    """On a base that is sure of the wrong thing, any disturbance helps; so does random noise."""
    watch = Told()
    with pytest.raises(NothingBetter) as caught:
        moved(tools, tmp_path / "out", "lantern-1", watch, method=auto(*QUICK), evaluate=LIKELY)
    assert "precheck.on_incompatible" in str(caught.value.hint)
    told = watch.reports[-1].selection
    assert told is not None
    assert (told.best, told.ending) == (None, "none_fit")
    gain = rows(told)["cross_lora"].gain
    assert gain is not None
    assert gain.low > 0.0
    asked = moved(
        tools,
        tmp_path / "asked",
        "lantern-1",
        method=auto(*QUICK),
        evaluate=LIKELY,
        precheck={"on_incompatible": "warn"},
    )
    assert asked.report.method_used["name"] == "cross_lora"
    assert any("because the request asked for it" in line for line in asked.report.caveats)


def test_training_wins_between_families_where_it_is_a_candidate(tools: Runtime, tmp_path: Path) -> None:
    prompts = [item.prompt for item in generate_examples("train", 64, 5)]
    settings = {"prompts": prompts, "tokens": 800, "length": 48, "steps": 16, "learning_rate": 2e-3}
    method = auto("cross_lora", {"name": "distill", **settings})
    found = moved(tools, tmp_path / "out", "lantern-1", method=method, evaluate=LIKELY)
    selection = found.report.selection
    assert selection is not None
    assert found.report.method_used["name"] == "distill"
    assert rows(selection)["distill"].verdict == "uncertain"
    assert scores(selection)["distill"] > scores(selection)["cross_lora"] + 1.0
    assert found.folder is not None
    assert "with training on text generated by the source" in (found.folder / "README.md").read_text()


def test_worse_than_the_target_alone_is_published_only_when_asked(tools: Runtime, tmp_path: Path) -> None:
    """A step of twenty times the bases' difference away from the target."""
    method = auto({"name": "difference", "gamma": -10.0}, {"name": "copy", "dare": {"p": 0.99}})
    with pytest.raises(NothingBetter, match="No candidate scores better than the target alone"):
        moved(tools, tmp_path / "out", method=method, evaluate=LIKELY)
    lenient = moved(tools, tmp_path / "lenient", method=method, evaluate={**LIKELY, "on_worse": "warn"})
    assert lenient.folder is not None
    assert lenient.report.caveats[0].startswith("On the examples, it does not score better")


def test_a_sweep_tells_every_share_and_keeps_none_where_dropping_hurts(
    tools: Runtime, copied: Path, tmp_path: Path
) -> None:
    found = moved(
        tools, tmp_path / "out", method={"name": "copy", "dare": {"p": "sweep", "seed": 1}}, evaluate=LIKELY
    )
    selection = found.report.selection
    assert selection is not None
    shares = [(row.method["dare"] or {"p": 0})["p"] for row in selection.candidates]
    assert shares == [0, 0.8, 0.9, 0.95, 0.99]
    values = [row.score.value for row in selection.candidates if row.score is not None]
    assert values == sorted(values, reverse=True)
    assert (selection.best, found.report.method_used["dare"]) == (0, None)
    assert found.report.method_requested["dare"]["p"] == "sweep"
    assert found.folder is not None
    one, two = (load_file(f / "adapter_model.safetensors") for f in (copied, found.folder))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not [row for row in found.report.sites if "dare_lost_energy" in row.measurements]
    assert "dare" not in {reason.code for reason in found.report.precheck.reasons}


def test_a_share_of_a_sweep_is_what_naming_it_gives(tools: Runtime, tmp_path: Path) -> None:
    dare = {"seed": 5, "rank": 32}
    swept, named = (
        moved(tools, tmp_path / out, method=method, evaluate=LIKELY).report.selection
        for out, method in (
            ("swept", {"name": "copy", "dare": {**dare, "p": "sweep"}}),
            ("named", auto(*({"name": "copy", "dare": {**dare, "p": p}} for p in (0.8, 0.9)))),
        )
    )
    assert swept is not None
    assert named is not None
    assert swept.candidates[1:3] == named.candidates


def test_too_few_examples_choose_and_measure_alike_and_that_is_said(tools: Runtime, tmp_path: Path) -> None:
    few = {**LIKELY, "examples": TASK[:5]}
    found = moved(tools, tmp_path / "out", method=auto("copy", "linear"), evaluate=few)
    selection = found.report.selection
    assert selection is not None
    assert selection.shared
    assert (selection.choosing, selection.confirming) == (5, 5)
    assert any("too few examples to split" in line for line in found.report.caveats)


def test_the_card_shows_the_table(chosen: Path) -> None:
    card = (chosen / "README.md").read_text()
    section = card.split("## How the method was chosen")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in QUICK]
    assert lines[2].endswith("chosen |")
    assert "which were not used for the selection" in section


def test_without_examples_rules_choose_and_nothing_is_compared(tools: Runtime, tmp_path: Path) -> None:
    probe = {"refusals": {"prompts": ["Question: Which ships came?"], "tokens": 4}, "controls": []}
    found = moved(tools, tmp_path / "out", evaluate=probe)
    assert found.report.selection is None
    assert found.report.method_used["name"] == "copy"
    assert any("'evaluate' has none" in warning for warning in found.report.warnings)


def test_a_candidate_that_names_no_pool_is_told_at_its_own_place(tools: Runtime, tmp_path: Path) -> None:
    method = auto("copy", {"name": "anchor_ridge", "pool": "0" * 32})
    with pytest.raises(NotFound) as caught:
        moved(tools, tmp_path / "out", method=method, evaluate=LIKELY)
    assert caught.value.pointer == "/method/candidates/1/pool"
