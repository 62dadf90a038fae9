"""Every weight-space method as a person runs it, from SmolLM2 to a close release; PEFT loads the results.

The trained adapter is cut to four layers, so that a method costs seconds. `alone` is the release without an
adapter, `untouched` with the adapter as it was trained: what retraining could hope for on so close a release.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from rebase.cli.app import run
from support.real_adapter import row_losses
from support.real_release import NEXT_RELEASE, PART_LAYERS, PART_REPO, add_part_of_the_adapter, add_pool
from support.real_repos import Base, load_model

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

ENTRIES = 4  # of held-out text: a few sequences of 96 tokens
SITES = 7 * len(PART_LAYERS)

# Method with its settings → the share of the untouched adapter's gain that was seen to arrive. On so close a
# release nothing beats copying; whatever projects loses what it projects away.
METHODS: dict[str, float] = {
    "copy": 1.0,
    "difference": 0.98,
    "linear": 0.70,
    "weight_average": 0.56,  # by its formula half of the adapter
    "prolora": 0.30,
    "ties": 0.56,
    "cross_lora": 0.19,
    "cross_lora alignment=projection": 0.20,
    "cross_lora orthogonalize=true": 0.19,
    "cross_lora alignment=index": 0.03,
}
GIVE = 0.1  # a few sequences and another machine's rounding


@dataclass(frozen=True)
class Release:
    """The target, with the losses between which every method lies."""

    model: Any
    tokenizer: Any
    alone: float
    untouched: float

    def loss(self, adapter: Path) -> float:
        """Nats per token with that adapter on; the model is left as it was."""
        adapted = PeftModel.from_pretrained(self.model, str(adapter))
        found = float(row_losses(adapted, self.tokenizer, ENTRIES).mean())
        adapted.unload()
        return found


@pytest.fixture(scope="module")
def release(hub_root: Path, next_release: Path, smollm2: Base) -> Release:
    part = add_part_of_the_adapter(hub_root)
    model = load_model(next_release)
    alone = float(row_losses(model, smollm2.tokenizer, ENTRIES).mean())
    opened = Release(model, smollm2.tokenizer, alone, alone)
    return Release(model, smollm2.tokenizer, alone, opened.loss(part))


@pytest.fixture(scope="module")
def at_home(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One home for all methods, so that the bases are factorised once per rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBASE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("REBASE_HUB_DIR", str(hub_root))
        patch.setenv("REBASE_DEVICE", "cpu")
        yield


def test_four_layers_of_the_adapter_are_a_skill_worth_moving(release: Release) -> None:
    print(f"\n{release.alone:.3f} alone, {release.untouched:.3f} with the untouched adapter")
    assert release.untouched < release.alone - 1.0


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("chosen", METHODS)
def test_a_method_carries_its_share_to_a_close_release(
    chosen: str, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, *settings = chosen.split()
    out = tmp_path / "moved"
    line = ["transfer", PART_REPO, "--target", NEXT_RELEASE, "--method", method, "--out", str(out), "--json"]
    code = run([*line, *(part for setting in settings for part in ("--set", setting))])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    report = json.loads(shown.out)["report"]
    assert len(report["sites"]) == SITES

    loss = release.loss(out)
    recovered = (release.alone - loss) / (release.alone - release.untouched)
    verdict = report["precheck"]["verdict"]
    with capsys.disabled():
        print(f"\n{chosen}: {verdict}, {loss:.3f} nats, {recovered:.0%} of the gain", end=" ")
    assert recovered == pytest.approx(METHODS[chosen], abs=GIVE)
    assert recovered > 0.5 or verdict != "compatible"


@pytest.mark.usefixtures("at_home")
def test_a_task_that_a_pool_knows_comes_back_from_it_and_a_pool_without_it_gives_nothing(
    release: Release, hub_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = add_pool(hub_root)
    known, unknown = tmp_path / "known.json", tmp_path / "unknown.json"
    known.write_text(json.dumps(pool))
    unknown.write_text(json.dumps(pool | {"anchors": pool["anchors"][1:]}))
    shares, verdicts = [], []
    for file in (known, unknown):
        out = tmp_path / f"moved by {file.stem}"
        line = ["transfer", PART_REPO, "--target", NEXT_RELEASE, "--method", "anchor_ridge", "--json"]
        line += ["--pool", str(file), "--out", str(out), "--set", "penalty=1e-6"]
        assert run([*line, "--set", "precheck.on_incompatible=warn"]) == 0
        report = json.loads(capsys.readouterr().out)["report"]
        assert len(report["sites"]) == SITES
        shares.append((release.alone - release.loss(out)) / (release.alone - release.untouched))
        verdicts.append(report["precheck"]["verdict"])
    with capsys.disabled():
        print(
            f"\nanchor_ridge: {shares[0]:.0%} from a pool that has the task, {shares[1]:.0%} without", end=" "
        )
    assert shares[0] == pytest.approx(1.0, abs=GIVE)
    assert abs(shares[1]) < GIVE
    assert verdicts == ["incompatible", "incompatible"]  # three tasks that say nothing of each other
