"""From names to a verified folder, and every way in which names, files and requests can be wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rebase.cache.factor_cache import FactorCache
from rebase.conversion.pipeline import ConversionResult, run_conversion
from rebase.conversion.plan import plan_conversion
from rebase.errors import (
    FileMissing,
    IncompatiblePair,
    MalformedAdapter,
    OutputExists,
    Rejected,
    RepoNotFound,
    RequestInvalid,
    TransferError,
    UnsafeFile,
    UnsupportedAdapter,
    UnsupportedModel,
)
from rebase.hub.local import LocalHub
from rebase.report.progress import NullReporter
from rebase.report.schema import Report
from rebase.runtime import Runtime
from rebase.schemas.conversions import ConversionRequest
from rebase.schemas.states import Phase
from support.tiny_models import save_adapter, tiny_model
from support.tiny_repos import ADAPTER, NEW, OLD, OTHER, edit_json, make_hub


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "hub"))


class Recorder(NullReporter):
    """A watch that remembers the phases and the reports."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.reports: list[Report] = []

    def update(self, phase: Phase, done: int = 0, total: int | None = None, unit: str | None = None) -> None:
        if phase not in self.phases:
            self.phases.append(phase)

    def report_evidence(self, report: Report) -> None:
        self.reports.append(report)


def convert(
    hub: Path, *, kind: Any = "convert", marker: str | None = None, **changes: Any
) -> ConversionResult:
    body: dict[str, Any] = {"adapter": {"repo_id": ADAPTER}, "target": {"repo_id": NEW}, "method": "copy"}
    watch = changes.pop("watch", NullReporter())
    out = changes.pop("out", hub.parent / "out")
    request = ConversionRequest.model_validate(body | changes)
    tools = Runtime(LocalHub(hub), FactorCache(hub.parent / "cache", 2**30), torch.device("cpu"))
    outcome = run_conversion(plan_conversion(request, kind), tools, watch, out, marker=marker)
    assert isinstance(outcome, ConversionResult)
    return outcome


def test_copy_carries_every_update_unchanged(hub: Path) -> None:
    outcome = convert(hub, output={"dtype": "float32"})

    assert outcome.folder is not None
    ours = load_file(outcome.folder / "adapter_model.safetensors")
    theirs = load_file(hub / ADAPTER / "adapter_model.safetensors")
    scale = json.loads((hub / ADAPTER / "adapter_config.json").read_text())["lora_alpha"] / 4
    assert set(ours) == set(theirs)
    for name in (n for n in ours if "lora_A" in n):
        partner = name.replace("lora_A", "lora_B")
        torch.testing.assert_close(ours[partner] @ ours[name], scale * theirs[partner] @ theirs[name])


def test_the_same_request_gives_the_same_bytes(hub: Path) -> None:
    method = {"name": "cross_lora", "rank": 8}
    one = convert(hub, method=method, out=hub.parent / "one")
    two = convert(hub, method=method, out=hub.parent / "two")

    assert one.folder is not None
    assert two.folder is not None
    files = sorted(path.name for path in one.folder.iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "rebase_report.json"]
    for name in files:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_a_second_adapter_between_the_same_bases_factorises_and_aligns_nothing(hub: Path) -> None:
    method = {"name": "cross_lora", "rank": 16}
    lora = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    save_adapter(hub / "acme/other-skill", tiny_model("llama", seed=0), seed=9, **lora)
    edit_json(hub / "acme/other-skill" / "adapter_config.json", base_model_name_or_path=OLD, revision=None)
    convert(hub, method=method, out=hub.parent / "one")
    cache = FactorCache(hub.parent / "cache", 2**30)
    entries = {entry.key for entry in cache.list_entries()}
    assert len(entries) == 3 * 14

    convert(hub, adapter={"repo_id": "acme/other-skill"}, method=method, out=hub.parent / "two")
    assert {entry.key for entry in cache.list_entries()} == entries


def test_the_report_and_card_tell_where_everything_came_from(hub: Path) -> None:
    outcome = convert(hub)

    assert outcome.folder is not None
    report = json.loads((outcome.folder / "rebase_report.json").read_text())
    assert report["schema_version"] == 1
    assert report["adapter"]["repo_id"] == ADAPTER
    assert all(len(report[side]["sha"]) == 40 for side in ("adapter", "source", "target"))
    assert len(report["sites"]) == 14
    assert report["verification"]["forward_scope"] == "whole model"
    card = (outcome.folder / "README.md").read_text()
    assert card.startswith('---\nbase_model: "acme/new"\nbase_model_relation: adapter\nlibrary_name: peft\n')
    assert report["target"]["sha"] in card


def test_phases_are_told_in_order(hub: Path) -> None:
    watch = Recorder()
    convert(hub, watch=watch, method={"name": "cross_lora", "rank": 8})

    assert watch.phases == [
        Phase.RESOLVING,
        Phase.READING,
        Phase.PRECHECKING,
        Phase.FACTORIZING,
        Phase.TRANSFERRING,
        Phase.VERIFYING,
    ]


def test_a_precheck_stops_after_the_verdict(hub: Path) -> None:
    outcome = convert(hub, kind="precheck")

    assert outcome.folder is None
    assert outcome.report.precheck.verdict == "compatible"
    assert outcome.report.precheck.reasons


def test_auto_copies_between_close_relatives_and_says_so(hub: Path) -> None:
    outcome = convert(hub, method="auto")

    assert outcome.report.method_requested["name"] == "auto"
    assert outcome.report.method_used["name"] == "copy"
    assert outcome.report.precheck.verdict == "compatible"


def test_copy_between_families_is_refused_before_any_weight_is_read(hub: Path) -> None:
    watch = Recorder()
    with pytest.raises((Rejected, IncompatiblePair)):
        convert(hub, target={"repo_id": OTHER}, watch=watch)
    assert Phase.TRANSFERRING not in watch.phases


def test_unrelated_bases_are_rejected_with_reasons_and_the_evidence_is_kept(hub: Path) -> None:
    watch = Recorder()
    with pytest.raises(Rejected) as caught:
        convert(hub, target={"repo_id": OTHER}, method={"name": "cross_lora", "rank": 8}, watch=watch)
    assert caught.value.hint is not None
    assert watch.reports[-1].precheck.verdict == "incompatible"


def test_a_warning_in_place_of_a_rejection_converts_and_says_so_in_the_card(hub: Path) -> None:
    outcome = convert(
        hub,
        target={"repo_id": OTHER},
        method={"name": "cross_lora", "rank": 8},
        precheck={"on_incompatible": "warn"},
    )
    assert outcome.folder is not None
    assert "incompatible" in (outcome.folder / "README.md").read_text()
    assert outcome.report.dropped_sites  # GPT-NeoX has no gate


def test_output_max_rank_truncates_and_reports_the_loss(hub: Path) -> None:
    outcome = convert(hub, output={"max_rank": 2, "dtype": "float32"})

    assert outcome.report.output["rank"] == 2
    assert all(row.measurements["truncation_lost_energy"] > 0 for row in outcome.report.sites)


def test_an_unknown_adapter_points_at_its_field(hub: Path) -> None:
    with pytest.raises(RepoNotFound) as caught:
        convert(hub, adapter={"repo_id": "acme/nothing"})
    assert caught.value.pointer == "/adapter"


def test_an_unknown_target_points_at_its_field(hub: Path) -> None:
    with pytest.raises(RepoNotFound) as caught:
        convert(hub, target={"repo_id": "acme/nothing"})
    assert caught.value.pointer == "/target"


def test_a_repo_without_adapter_config_is_not_an_adapter(hub: Path) -> None:
    (hub / ADAPTER / "adapter_config.json").unlink()
    with pytest.raises(FileMissing, match=r"adapter_config\.json"):
        convert(hub)


def test_an_adapter_that_is_a_pickle_is_refused(hub: Path) -> None:
    (hub / ADAPTER / "adapter_model.safetensors").rename(hub / ADAPTER / "adapter_model.bin")
    with pytest.raises(UnsafeFile, match="pickle"):
        convert(hub)


def test_an_adapter_that_names_no_base_needs_a_source(hub: Path) -> None:
    edit_json(hub / ADAPTER / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(MalformedAdapter) as caught:
        convert(hub)
    assert caught.value.pointer == "/source"
    assert convert(hub, source={"repo_id": OLD}).folder is not None


def test_an_adapter_that_names_a_path_as_its_base_needs_a_source(hub: Path) -> None:
    edit_json(hub / ADAPTER / "adapter_config.json", base_model_name_or_path="/home/me/base")
    with pytest.raises(MalformedAdapter, match="/home/me/base"):
        convert(hub)


def test_a_source_of_another_name_is_a_warning(hub: Path) -> None:
    shutil.copytree(hub / OLD, hub / "mirror" / "renamed")
    outcome = convert(hub, source={"repo_id": "mirror/renamed"})
    assert any("mirror/renamed" in warning for warning in outcome.report.warnings)


def test_names_from_an_adapter_stay_plain_text_in_the_card(hub: Path) -> None:
    named = "x\n\n# Trust me\n<img src=//evil> [click](http://evil) \x1b[31m"
    edit_json(hub / ADAPTER / "adapter_config.json", base_model_name_or_path=named)
    (hub / ADAPTER / "README.md").write_text("---\nlicense: <b>mine</b>\n---\n")
    outcome = convert(hub, source={"repo_id": OLD})

    assert outcome.folder is not None
    card = (outcome.folder / "README.md").read_text()
    assert "Trust me" in card
    assert not any(line.startswith("# Trust") for line in card.splitlines())
    assert not re.search(r"(?<!\\)[<\[]", card)
    assert "\x1b" not in card
    assert not any("\x1b" in warning for warning in outcome.report.warnings)


def test_the_card_of_a_source_repo_is_not_read_when_it_is_absurdly_large(hub: Path) -> None:
    (hub / OLD / "README.md").write_text("---\nlicense: mit\n---\n" + "x" * 2**21)
    outcome = convert(hub)

    assert outcome.folder is not None
    assert "`acme/old`: no licence named" in (outcome.folder / "README.md").read_text()


def test_a_source_that_does_not_fit_the_adapter_is_refused(hub: Path) -> None:
    with pytest.raises(MalformedAdapter) as caught:
        convert(hub, source={"repo_id": OTHER})
    assert caught.value.pointer == "/source"


def test_a_target_that_transformers_cannot_build_is_refused_before_the_work(hub: Path) -> None:
    edit_json(hub / NEW / "config.json", hidden_act="nonsense")
    watch = Recorder()
    with pytest.raises(UnsupportedModel) as caught:
        convert(hub, watch=watch)
    assert caught.value.pointer == "/target"
    assert watch.phases == [Phase.RESOLVING, Phase.READING]


def test_target_and_source_must_differ(hub: Path) -> None:
    with pytest.raises(RequestInvalid, match="same base"):
        convert(hub, target={"repo_id": OLD})


@pytest.mark.parametrize("peft_type", ["PREFIX_TUNING", "PROMPT_TUNING"])
def test_other_peft_types_are_named_and_refused(hub: Path, peft_type: str) -> None:
    edit_json(hub / ADAPTER / "adapter_config.json", peft_type=peft_type)
    with pytest.raises(UnsupportedAdapter, match=peft_type):
        convert(hub)


@pytest.mark.parametrize("rank", [0, -1, 10**6, "four", None])
def test_an_absurd_rank_is_refused(hub: Path, rank: Any) -> None:
    edit_json(hub / ADAPTER / "adapter_config.json", r=rank)
    with pytest.raises(TransferError):
        convert(hub)


def _edit_tensors(hub: Path, change: Any) -> None:
    path = hub / ADAPTER / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_nan_in_the_adapter_is_named(hub: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    _edit_tensors(hub, lambda tensors: tensors[name].view(-1)[3:4].fill_(float("nan")))
    with pytest.raises(MalformedAdapter, match=r"layers\.1\.mlp\.up_proj"):
        convert(hub)


def test_tensors_that_match_no_module_are_named(hub: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 32)
        tensors["base_model.model.model.layers.7.mlp.up_proj.lora_B.weight"] = torch.zeros(48, 4)

    _edit_tensors(hub, add)
    with pytest.raises(MalformedAdapter, match=r"layers\.7"):
        convert(hub)


def test_a_wrong_shape_in_the_adapter_is_named(hub: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    _edit_tensors(hub, lambda tensors: tensors.update({name: torch.zeros(4, 40)}))
    with pytest.raises(MalformedAdapter, match="40"):
        convert(hub)


def test_a_truncated_adapter_file_is_refused(hub: Path) -> None:
    path = hub / ADAPTER / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnsafeFile, match=r"adapter_model\.safetensors"):
        convert(hub)


def test_an_output_repo_with_other_content_is_refused_before_the_work(hub: Path) -> None:
    watch = Recorder()
    folder = hub.parent / "theirs"
    folder.mkdir()
    (folder / "notes.txt").write_text("somebody else's work")
    LocalHub(hub).publish("acme/taken", folder, message="first", parent=None, private=True, create_pr=False)
    with pytest.raises(OutputExists) as caught:
        convert(hub, output={"repo_id": "acme/taken"}, marker="Rebase-Job: 1", watch=watch)
    assert caught.value.pointer == "/output/repo_id"
    assert watch.phases == [Phase.RESOLVING]


def _move_into(hub: Path, *subfolders: str) -> None:
    """Copies of the adapter in folders of its repo, and nothing at the top."""
    shutil.move(hub / ADAPTER, hub / "one")
    for subfolder in subfolders:
        shutil.copytree(hub / "one", hub / ADAPTER / subfolder)


def test_the_default_name_of_the_output_tells_the_folders_of_a_repo_apart(hub: Path) -> None:
    _move_into(hub, "runs/sql", "my poems")
    names = {
        subfolder: convert(
            hub,
            marker="Rebase-Job: 1",
            out=hub.parent / subfolder.replace("/", "-"),
            adapter={"repo_id": ADAPTER, "subfolder": subfolder},
        ).output
        for subfolder in ("runs/sql", "my poems")
    }
    assert {subfolder: output and output.repo_id for subfolder, output in names.items()} == {
        "runs/sql": "acme/skill-runs-sql--new",
        "my poems": "acme/skill-my-poems--new",
    }


def test_an_output_of_one_folder_is_not_replaced_by_that_of_another(hub: Path) -> None:
    _move_into(hub, "sql", "poems")
    changes: dict[str, Any] = {"marker": "Rebase-Job: 1", "output": {"repo_id": "acme/moved"}}
    first = convert(hub, adapter={"repo_id": ADAPTER, "subfolder": "sql"}, **changes)
    assert first.folder is not None
    LocalHub(hub).publish("acme/moved", first.folder, message="m", parent=None, private=True, create_pr=False)
    again = convert(hub, adapter={"repo_id": ADAPTER, "subfolder": "sql"}, out=hub.parent / "2", **changes)
    assert again.output is not None and again.output.parent is not None
    with pytest.raises(OutputExists):
        convert(hub, adapter={"repo_id": ADAPTER, "subfolder": "poems"}, out=hub.parent / "3", **changes)


def test_a_library_of_adapters_is_refused_with_its_folders(hub: Path) -> None:
    _move_into(hub, "sql", "poems")
    with pytest.raises(FileMissing, match="it holds adapters in sql, poems") as caught:
        convert(hub)
    assert caught.value.pointer == "/adapter"
    with pytest.raises(FileMissing, match="no folder 'prose'") as missing:
        convert(hub, adapter={"repo_id": ADAPTER, "subfolder": "prose"})
    assert missing.value.pointer == "/adapter"
