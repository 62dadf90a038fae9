"""`rebase.convert`, `rebase.precheck` and `rebase.methods`: the pipeline as a library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import rebase
from rebase.errors import CommandFailed, Rejected, RequestInvalid

HUB = Path(__file__).parents[2] / "examples" / "hub"
ADAPTER, TARGET = "tiny/harbor-sql-lora", "tiny/harbor-2"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and the bundled repos as the hub."""
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REBASE_HUB_DIR", str(HUB))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_convert_writes_a_peft_folder_and_returns_the_evidence(here: Path) -> None:
    phases: list[tuple[str, int, int | None]] = []
    result = rebase.convert(
        ADAPTER, TARGET, out=here / "out", progress=lambda *at: phases.append(at), output={"max_rank": 4}
    )
    assert (result.verdict, result.method) == ("compatible", "copy")
    assert result.folder == here / "out"
    assert json.loads((here / "out/adapter_config.json").read_text())["r"] <= 4
    assert load_file(here / "out/adapter_model.safetensors")
    assert result.reasons == [finding.message for finding in result.report.precheck.reasons]
    assert {"resolving", "reading", "prechecking", "transferring", "verifying"} <= {at[0] for at in phases}


def test_the_command_line_writes_the_same_bytes(here: Path) -> None:
    rebase.convert(
        ADAPTER, TARGET, method="cross_lora", rank=16, out="api", precheck={"on_incompatible": "warn"}
    )
    command = ["transfer", ADAPTER, "--target", TARGET, "--out", "cli", "--method", "cross_lora"]
    command += ["--set", "rank=16", "--set", "precheck.on_incompatible=warn"]
    subprocess.run([sys.executable, "-m", "rebase", *command], check=True, capture_output=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (here / "api" / name).read_bytes() == (here / "cli" / name).read_bytes()


def test_precheck_converts_nothing(here: Path) -> None:
    result = rebase.precheck(ADAPTER, "tiny/lantern-1")
    assert result.verdict == "incompatible"
    assert result.folder is None
    assert result.reasons


def test_an_incompatible_pair_raises_and_leaves_nothing(here: Path) -> None:
    with pytest.raises(Rejected, match="incompatible"):
        rebase.convert(ADAPTER, "tiny/lantern-1", out="out")
    assert not (here / "out").exists()


def test_examples_are_measured(here: Path) -> None:
    line = (HUB.parent / "tasks/harbor-sql.jsonl").read_text().splitlines()[0]
    result = rebase.convert(ADAPTER, TARGET, method="copy", out="out", evaluate=[json.loads(line)])
    assert result.report.evaluation is not None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"method": "crosslora"}, RequestInvalid, "there is no method 'crosslora'"),
        ({"method": "cross_lora", "rnk": 3}, RequestInvalid, "rnk: there is no such parameter"),
        ({"output": {"repo_id": "a/b"}}, RequestInvalid, "does not publish"),
        ({"evaluate": "no.jsonl"}, RequestInvalid, "no.jsonl cannot be read"),
        ({"out": "full"}, CommandFailed, "not an empty folder"),
    ],
)
def test_a_wrong_argument_is_named(
    here: Path, arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    (here / "full").mkdir()
    (here / "full/file").touch()
    with pytest.raises(error, match=words):
        rebase.convert(ADAPTER, TARGET, **({"out": "out"} | arguments))  # type: ignore[arg-type]


def test_methods_lists_every_method_with_its_parameters() -> None:
    listed = {entry["name"]: entry for entry in rebase.methods()}
    assert {"auto", "copy", "cross_lora", "distill"} <= set(listed)
    assert "rank" in listed["cross_lora"]["parameters"]["properties"]


def test_importing_rebase_and_listing_methods_leaves_torch_unloaded() -> None:
    code = "import rebase, sys; rebase.methods(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
