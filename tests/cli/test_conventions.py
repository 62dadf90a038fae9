"""What every command owes its user: a quick start, no tracebacks, fitting progress, pages that are true."""

from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rebase.cli import app, methods
from rebase.cli.cache import format_size, parse_size
from rebase.cli.progress import PhaseProgress
from rebase.client.errors import ServiceUnreachable
from support.command import Command
from support.running_service import clean_environment

ROOT = Path(__file__).resolve().parents[2]

LIGHT = """
import sys
from rebase.cli.app import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "sqlalchemy", "alembic", "huggingface_hub"} & set(sys.modules)
sys.exit(f"{heavy} was loaded" if heavy else int(code))
"""


INTERRUPTED_AT = """
import signal
import sys
from rebase.cli import main
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            signal.raise_signal(signal.SIGINT)
module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["methods"], 0),
        (["status", "0" * 32, "--url", "http://127.0.0.1:1"], 4),
        (["convert", "a/b", "--target", "c/d", "--url", "http://127.0.0.1:1"], 4),
        (["pools", "ls", "--url", "http://127.0.0.1:1"], 4),
        (["transfer", "a/b", "--target", "c/d", "--out", "x", "--set", "nonsense"], 2),
        (["up", "--help"], 0),
    ],
)
def test_commands_that_compute_nothing_load_neither_torch_nor_a_database(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LIGHT, *arguments],
        env=clean_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`rebase methods` runs into something that nobody thought of."""

    def fail() -> None:
        raise ZeroDivisionError("a private cause")

    monkeypatch.setattr(methods, "describe", fail)
    monkeypatch.setenv("REBASE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_an_unforeseen_error_is_one_sentence_and_its_cause_is_in_the_log(
    broken: Path, rebase: Command
) -> None:
    done = rebase("methods", "--json")
    assert done.code == 1
    assert '"internal"' in done.out and "private" not in done.out + done.err
    assert str(broken / "logs" / "cli.log") in done.err
    assert "ZeroDivisionError: a private cause" in (broken / "logs" / "cli.log").read_text()


def test_debug_shows_the_cause_wherever_it_is_written(broken: Path, rebase: Command) -> None:
    for arguments in (["--debug", "methods"], ["methods", "--debug"]):
        assert "ZeroDivisionError: a private cause" in rebase(*arguments).err
    assert not broken.exists()


def test_a_home_that_cannot_be_written_still_gets_a_sentence(broken: Path, rebase: Command) -> None:
    broken.write_text("a file where the folder should be")
    done = rebase("methods")
    assert done.code == 1
    assert "--debug" in done.err and "Traceback" not in done.err


def test_settings_that_do_not_parse_are_named(rebase: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REBASE_PORT", "eight thousand")
    done = rebase("up")
    assert done.code == 2
    assert "REBASE_PORT" in done.err


def test_bare_rebase_and_help_print_the_commands(rebase: Command) -> None:
    assert "transfer" in rebase().out
    assert (rebase("--help").code, rebase("convert", "--help").code) == (0, 0)
    assert rebase("--version").out.startswith("rebase ")


def test_every_method_is_listed_and_told_with_its_parameters(rebase: Command) -> None:
    assert "cross_lora" in rebase("methods").out
    told = rebase("methods", "cross_lora").out
    assert "1 to 16384" in told and "anchored | activations | projection | index" in told


def test_progress_off_a_terminal_is_a_line_per_piece_of_news() -> None:
    stream = io.StringIO()
    with PhaseProgress(Console(file=stream, force_terminal=False)) as progress:
        progress.update("resolving")
        for done in range(101):
            progress.update("transferring", done, 100, "sites", 1.0)
        progress.update("verifying")
        progress.update("verifying")
    assert stream.getvalue().splitlines() == [
        "resolving",
        "transferring: 0/100 sites",
        "transferring: 100/100 sites",
        "verifying",
    ]


def test_progress_on_a_terminal_keeps_a_bar_for_every_phase() -> None:
    stream = io.StringIO()
    with PhaseProgress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.update("resolving")
        progress.update("transferring", 3, 7, "sites", 12.4)
        progress.update("verifying")
    final = stream.getvalue().split("resolving")[-1]
    assert "transferring" in final and "7/7 sites" in final and "verifying" in final
    assert "1/1" not in final


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("10", 10), ("1K", 1024), ("1.5m", 3 * 2**19), ("20 GiB", 20 * 2**30), ("1TB", 2**40)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_sizes_are_written_with_a_unit() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 3 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 MiB",
        "5120.0 GiB",
    ]


def test_an_empty_cache_lists_and_prunes_nothing(
    rebase: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBASE_HOME", str(tmp_path))
    assert "0 entries" in rebase("cache", "ls").out
    assert rebase("cache", "prune", "--to", "1G").out == "Removed 0 entries, 0 B.\n"


def test_the_cache_lists_what_belongs_to_one_base_and_to_a_pair(
    rebase: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from rebase.cache.factor_cache import FactorCache
    from rebase.cache.keys import FactorKey, PairKey
    from rebase.lora.low_rank import Factors

    monkeypatch.setenv("REBASE_CACHE_DIR", str(tmp_path))
    cache, ones = FactorCache(tmp_path, 10**6), torch.ones(2, 1)
    monkeypatch.setenv("REBASE_CACHE_MAX_BYTES", str(10**6))
    one = FactorKey("acme/old", "a" * 40, "w", 320, 1)
    two = PairKey("acme/old", "a" * 40, "0.q_proj", "acme/new", "b" * 40, "1.q_proj", "alignment v1", "c")
    cache.get_or_compute(one, lambda: Factors(ones, torch.ones(1), ones, 1.0))
    cache.get_or_compute_tensors(two, lambda: {"rotation": ones})

    listed = " ".join(rebase("cache", "ls").out.split())
    for words in ("w, rank 320", "acme/old → acme/new", "0.q_proj → 1.q_proj, alignment", "2 entries"):
        assert words in listed
    entries = json.loads(rebase("cache", "ls", "--json").out)["entries"]
    assert [entry["key"] for entry in entries] == [one.fields, two.fields]

    assert "Removed 0 entries" in rebase("cache", "prune").out
    assert "Removed 2 entries" in rebase("cache", "prune", "--to", "0").out


def test_migrate_sets_up_a_database_and_says_what_is_wrong_with_one(
    rebase: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REBASE_HOME", str(tmp_path))
    assert "revision" in rebase("migrate").out
    assert rebase("keys", "ls").out == "No keys.\n"
    monkeypatch.setenv("REBASE_DATABASE_URL", "postgresql://me:secret-word@127.0.0.1:1/none")
    refused = rebase("migrate")
    assert refused.code == 1
    assert "REBASE_DATABASE_URL" in refused.err and "secret-word" not in refused.err


def test_the_reference_pages_are_what_make_docs_would_write() -> None:
    pages = runpy.run_path(str(ROOT / "scripts" / "docs.py"))["build_pages"]()
    for name, text in pages.items():
        assert (ROOT / "docs" / "reference" / name).read_text("utf-8") == text, "run `make docs`"


def test_make_alone_lists_every_target() -> None:
    process = subprocess.Popen(["make"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    listed, _ = process.communicate(timeout=60)
    targets = {line.split()[1] for line in listed.splitlines()}
    assert targets >= {"setup", "run", "demo", "test", "lint", "bench", "chaos", "docs", "lock"}


@pytest.mark.parametrize("module", ["typer", "torch", "transformers"])
def test_ctrl_c_while_modules_are_loading_is_one_word(tmp_path: Path, module: str) -> None:
    arguments = ["transfer", ".", "--source", "..", "--target", str(ROOT), "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_AT, module, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(tmp_path),
    )
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "Interrupted.\n")


def test_an_unreachable_service_is_told_apart_from_a_bug() -> None:
    assert app.exit_for_exception(ServiceUnreachable("http://x", "no")) is not None
    assert app.exit_for_exception(KeyError("x")) is None
