"""`rebase transfer` and `precheck --local`: the pipeline in this process, folders in, a folder out."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.synthetic import byte_level_tokenizer
from rebase.hub.aliases import FolderAliases
from rebase.methods.params import PARAMS_BY_NAME
from rebase.schemas.repos import check_repo_id
from support.command import REBASE, Command
from support.running_service import clean_environment
from support.tiny_models import save_adapter, save_base, tiny_model

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md", "rebase_report.json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its unchanged copy under another name, a base of another shape, and an adapter of the first."""
    folder = tmp_path_factory.mktemp("models")
    save_base(folder / "old", "llama", seed=0)
    save_base(folder / "new", "llama", seed=1)
    save_base(folder / "wider", "llama", seed=2, hidden_size=64, head_dim=16)
    save_adapter(folder / "lora", tiny_model("llama", seed=0), r=4, target_modules=["q_proj", "v_proj"])
    shutil.copytree(folder / "lora", folder / "orphan")
    config = json.loads((folder / "orphan" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "acme/nowhere"
    (folder / "orphan" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Standing where the models lie, with a home of our own and nothing else of Rebase's set."""
    monkeypatch.chdir(models)
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REBASE_DEVICE", "cpu")
    monkeypatch.delenv("REBASE_HUB_DIR", raising=False)
    return tmp_path


WARN = ("--set", "precheck.on_incompatible=warn")
COPY = ("lora", "--source", "old", "--target", "new", "--method", "copy", *WARN)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_folders_become_a_folder_that_names_its_base_by_its_absolute_path(
    here: Path, models: Path, rebase: Command
) -> None:
    out = here / "deep" / "out"
    done = rebase("transfer", *COPY, "--out", str(out), "--set", "output.dtype=float32")
    assert done.code == 0, done.err
    assert set(contents(out)) == FILES
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["r"]) == (f"{models}/new", None, 4)
    card = (out / "README.md").read_text()
    assert "| target base | local folder `new` (content `" in card
    assert str(models) not in card
    assert "verdict" in done.out and "norm_ratio" in done.out and str(out) in done.out
    assert "transferring: 4/4 sites" in done.err
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_peft_loads_the_result_from_any_folder(
    here: Path, rebase: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    assert rebase("transfer", *COPY, "--out", str(here / "out")).code == 0
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = AutoPeftModelForCausalLM.from_pretrained("out")
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 4


def test_the_result_can_be_moved_on_without_naming_its_base(
    here: Path, rebase: Command, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    assert rebase("transfer", *COPY, "--out", str(here / "one")).code == 0
    monkeypatch.chdir(here)
    again = ("one", "--target", str(models / "old"), "--method", "copy", *WARN, "--out", "two")
    assert rebase("transfer", *again).code == 0
    report = json.loads((here / "two" / "rebase_report.json").read_text())
    assert report["source"]["repo_id"] == f"{models}/new"
    assert not [warning for warning in report["warnings"] if "as its base" in warning]


def test_the_same_transfer_gives_the_same_bytes(here: Path, rebase: Command) -> None:
    for name in ("one", "two"):
        assert rebase("transfer", *COPY, "--out", str(here / name)).code == 0
    assert contents(here / "one") == contents(here / "two")


def test_json_is_one_document_whatever_libraries_print(here: Path, models: Path) -> None:
    env = clean_environment(here / "home", REBASE_DEVICE="cpu")
    command = [
        *REBASE,
        "transfer",
        *COPY,
        "--out",
        str(here / "out"),
        "--json",
        "--report",
        str(here / "r.json"),
    ]
    process = subprocess.Popen(
        command, env=env, cwd=models, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert set(document) == {"out", "verdict", "report"}
    assert document["report"] == json.loads((here / "r.json").read_text())
    assert "Warning" not in err


def test_a_pair_that_cannot_be_carried_exits_3_and_leaves_the_reasons(here: Path, rebase: Command) -> None:
    done = rebase(
        *("transfer", "lora", "--source", "old", "--target", "wider", "--method", "copy"),
        *("--out", str(here / "out"), "--report", str(here / "why.json"), "--json"),
    )
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] in {"incompatible", "incompatible_pair"}
    assert not (here / "out").exists()
    assert list(here.glob(".rebase-*")) == []


def test_a_refusal_shows_every_reason(here: Path, rebase: Command) -> None:
    arguments = [argument for argument in COPY if argument not in WARN]
    done = rebase("transfer", *arguments, "--out", str(here / "out"), "--report", str(here / "why.json"))
    reasons = json.loads((here / "why.json").read_text())["precheck"]["reasons"]
    assert done.code == 3
    assert len(reasons) > 1
    assert all(reason["message"] in done.out for reason in reasons)


def test_an_output_folder_that_cannot_be_made_is_named(here: Path, rebase: Command) -> None:
    done = rebase("transfer", *COPY, "--out", "/proc/nope")
    assert done.code == 1
    assert done.err.count("/proc/nope cannot be created") == 1 and "unforeseen" not in done.err


def test_an_output_folder_with_something_in_it_is_left_alone(here: Path, rebase: Command) -> None:
    out = here / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    done = rebase("transfer", *COPY, "--out", str(out))
    assert done.code == 1
    assert "not an empty folder" in done.err
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_an_empty_output_folder_is_filled(here: Path, rebase: Command) -> None:
    (here / "out").mkdir()
    assert rebase("transfer", *COPY, "--out", str(here / "out")).code == 0
    assert set(contents(here / "out")) == FILES


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("lora", "--target", "new", "--set", "rank=4", "--method", "copy"), 2, "method.rank"),
        (("lora", "--source", "old", "--target", "new", "--set", "output.repo_id=a/b"), 2, "output.repo_id"),
        (("old", "--source", "old", "--target", "new"), 1, "adapter_config.json"),
        (("lora", "--source", "lora", "--target", "new"), 1, "lora"),
        (("lora", "--source", "old", "--target", "old"), 2, "same base"),
        (("lora", "--source", "old", "--target", "new", "--hub", "nowhere"), 1, "nowhere"),
        (("lora", "--source", "old", "--target", "new", "--report", "no/where.json"), 1, "no/where.json"),
        (("./none", "--source", "old", "--target", "new"), 2, "no folder './none'"),
        (("lora", "--source", "old", "--target", "/no/folder"), 2, "owner/name"),
        (("lora", "--source", "old", "--target", ""), 2, "no folder"),
        (("orphan", "--target", "new", "--hub", "."), 1, "--source DIR"),
        (("no/body", "--source", "old", "--target", "new", "--hub", "."), 1, "no/body"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    here: Path, rebase: Command, arguments: tuple[str, ...], code: int, text: str
) -> None:
    done = rebase("transfer", *arguments, "--out", str(here / "out"))
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert "Traceback" not in done.err and "unforeseen" not in done.err
    assert not (here / "out").exists()


def test_repos_of_a_local_hub_folder_go_by_their_names(here: Path, models: Path, rebase: Command) -> None:
    for name in ("old", "lora"):
        shutil.copytree(models / name, here / "hub" / "acme" / name)
    done = rebase(
        *("transfer", "acme/lora", "--source", "acme/old", "--target", "./new", "--method", "copy", *WARN),
        *("--hub", str(here / "hub"), "--out", str(here / "out")),
    )
    assert done.code == 0, done.err
    report = json.loads((here / "out" / "rebase_report.json").read_text())
    assert (report["source"]["repo_id"], report["target"]["repo_id"]) == ("acme/old", f"{models}/new")


def test_a_local_precheck_gives_the_verdict_and_writes_nothing(here: Path, rebase: Command) -> None:
    done = rebase("precheck", *COPY, "--local", "--json")
    document = json.loads(done.out)
    assert document["verdict"] in {"compatible", "uncertain", "incompatible"}
    assert (done.code == 3) == (document["verdict"] == "incompatible")
    assert document["reasons"]


def test_folders_of_one_name_get_aliases_of_their_own(tmp_path: Path) -> None:
    typed = [str(tmp_path / name) for name in ("a/model", "b/model", "a/model", "c/-weird name-", "d/..x")]
    for path in typed:
        Path(path).mkdir(parents=True, exist_ok=True)
    aliases = FolderAliases()
    given = [aliases.to_reference(path) for path in typed]
    assert given[0] == given[2]
    assert len(set(given)) == 4
    for alias in given:
        assert "/" not in check_repo_id(alias)
    assert aliases.to_reference("acme/no-such-folder") == "acme/no-such-folder"


def _pool_of_two(folder: Path) -> Path:
    """A pool in which two further adapters of the one shape lie on both bases."""
    anchors = []
    for number in (1, 2):
        for side in ("old", "new"):
            place = folder / f"task-{number}-{side}"
            modules = ["q_proj", "v_proj"]
            save_adapter(place, tiny_model("llama", seed=0), seed=number, r=2, target_modules=modules)
        anchors.append({"source": f"task-{number}-old", "target": f"task-{number}-new"})
    (folder / "pool.json").write_text(json.dumps({"anchors": anchors}))
    return folder / "pool.json"


def _with_tokenizers(models: Path, folder: Path) -> None:
    """Copies of the bases that can read a text."""
    for name in ("old", "new"):
        shutil.copytree(models / name, folder / name)
        characters = ["Ġ", *(chr(code) for code in range(33, 127))]
        (folder / name / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer(characters)))


QUICK_CAST = ("objective=distribution", "steps=40", "tokens=48", "learning_rate=0.01", "evaluate_every=4")


# `distill` has random models learn nothing; tests/conversion/test_distill_pipeline.py runs it on real ones.
@pytest.mark.parametrize("name", sorted(set(PARAMS_BY_NAME) - {"auto", "distill"}))
def test_every_method_runs_by_name_and_leaves_its_measurements_in_the_report(
    name: str, here: Path, models: Path, rebase: Command
) -> None:
    out, report = here / name, here / f"{name}.json"
    where = ["lora", "--source", "old", "--target", "new", "--method", name, *WARN]
    if name == "cross_lora":  # these folders have no tokenizer, so no shared tokens either
        where += ["--set", "alignment=projection"]
    if name in {"activation", "cast", "geometric"}:
        _with_tokenizers(models, here)
        text = here / "text.txt"
        text.write_text("\n\n".join(f"Line {n} of a text, {n * n} words; {chr(65 + n)}!" for n in range(26)))
        bases = ["--source", str(here / "old"), "--target", str(here / "new")]
        where = ["lora", *bases, "--method", name, *WARN, "--corpus", str(text)]
    if name == "cast":
        where += [part for setting in QUICK_CAST for part in ("--set", setting)]
    if name == "anchor_ridge":
        where += ["--pool", str(_pool_of_two(here))]
    done = rebase("transfer", *where, "--out", str(out), "--report", str(report))
    assert done.code == 0, done.err
    found = json.loads(report.read_text())
    assert found["method_requested"]["name"] == name
    assert all(row["measurements"]["update_norm"] > 0.0 for row in found["sites"])
    assert "update_norm" in (out / "README.md").read_text()


def test_any_method_can_be_thinned_out_from_the_command_line(here: Path, rebase: Command) -> None:
    report = here / "thin.json"
    dare = ("--set", "method.dare.p=0.8", "--set", "method.dare.seed=3")
    done = rebase("transfer", *COPY, *dare, "--out", str(here / "thin"), "--report", str(report))
    assert done.code == 0, done.err
    found = json.loads(report.read_text())
    assert found["method_used"]["dare"] == {"p": 0.8, "mode": "random", "rank": None, "seed": 3}
    assert all(0.0 < row["measurements"]["dare_lost_energy"] < 1.0 for row in found["sites"])


def test_a_folder_inside_the_adapters_folder_may_be_named_after_a_colon(
    here: Path, models: Path, rebase: Command
) -> None:
    shutil.copytree(models / "lora", here / "run" / "checkpoint-500")
    refused = rebase("transfer", str(here / "run"), *COPY[1:], "--out", str(here / "never"), "--json")
    assert refused.code == 1
    assert "it holds adapters in checkpoint-500" in json.loads(refused.out)["error"]["message"]
    done = rebase("transfer", f"{here}/run:checkpoint-500", *COPY[1:], "--out", str(here / "out"))
    assert done.code == 0, done.err


def test_a_pasted_address_names_a_repo_of_the_hub_in_use(here: Path, models: Path, rebase: Command) -> None:
    for name in ("old", "new"):
        shutil.copytree(models / name, here / "hub" / "acme" / name)
    shutil.copytree(models / "lora", here / "hub" / "acme" / "library" / "sql")
    tree = "https://huggingface.co/acme/library/tree/main/sql"
    command = ("--source", "hf.co/acme/old", "--target", "acme/new", "--method", "copy", *WARN)
    done = rebase(
        "transfer", tree, *command, "--hub", str(here / "hub"), "--out", str(here / "out"), "--json"
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)["report"]
    assert (report["adapter"]["repo_id"], report["adapter"]["subfolder"]) == ("acme/library", "sql")
    assert "subfolder" not in report["target"]
    twice = rebase("transfer", tree, *command, "--set", "adapter.revision=v2", "--out", str(here / "two"))
    assert twice.code == 2
    assert "'main'" in twice.err and "'v2'" in twice.err
