"""The whole path with real weights: HTTP → SQL → doorbell → Celery worker → a Hub over real HTTP → PEFT.

API and worker are processes of their own, the Hub is the stand-in server that the real Hub client talks to,
and the adapter and its output are private, so that every byte of them needs the token. The adapter has five
of the seven modules, in all layers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel

from rebase.client.http import RebaseClient
from rebase.client.models import Job
from rebase.localstack.stack import Stack, StackConfig, choose_port
from rebase.schemas.conversions import ConversionRequest
from support.real_models import GEMMA3, SMOLLM2
from support.real_release import SLIM_MODULES, SLIM_REPO, add_slim_adapter
from support.real_repos import Base
from support.standin_hub import StandinHub

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

TOKEN = "hf_harbour"
SITES = 18 * len(SLIM_MODULES)


@dataclass(frozen=True)
class Deployment:
    """A running stack and the Hub that it works with."""

    client: RebaseClient
    hub: StandinHub
    stack: Stack

    def finished(self, **body: Any) -> Job:
        """Submit a conversion to Gemma and wait for its end."""
        request = {"adapter": {"repo_id": SLIM_REPO}, "target": {"repo_id": GEMMA3.repo_id}, **body}
        job = self.client.convert(ConversionRequest.model_validate(request))
        return self.client.wait(job.id, timeout_s=600)


@pytest.fixture(scope="module")
def deployment(hub_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("home")
    add_slim_adapter(hub_root)
    with pytest.MonkeyPatch.context() as patch, StandinHub() as hub:
        hub.add_token(TOKEN, user="harbour")
        for repo_id in (SMOLLM2.repo_id, GEMMA3.repo_id, SLIM_REPO):
            hub.add_repo(repo_id, hub_root / repo_id, private=repo_id == SLIM_REPO)
        for name in os.environ:
            if name.startswith("REBASE_"):
                patch.delenv(name)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.delenv("HF_HUB_CACHE", raising=False)
        patch.setenv("REBASE_HUB_TOKEN", TOKEN)
        patch.setenv("OMP_NUM_THREADS", "1")
        place = StackConfig(home=home, hub=None, host="127.0.0.1", port=choose_port("127.0.0.1", 0))
        with Stack(place, print) as stack, RebaseClient(place.url) as client:
            stack.start()
            yield Deployment(client, hub, stack)


def test_a_trained_adapter_moves_to_another_family_over_http_and_runs_there(
    deployment: Deployment, gemma3: Base, tmp_path: Path
) -> None:
    job = deployment.finished(
        method={"name": "cross_lora", "rank": 320, "alignment": "anchored"},
        output={"repo_id": "harbour/log-lora-gemma"},
        precheck={"on_incompatible": "warn"},
    )
    assert job.succeeded, (job.error, deployment.stack.children[1].read_log_tail(60))
    assert job.verdict in {"uncertain", "incompatible"}
    assert job.result is not None
    print(f"\nverdict {job.verdict}; " + " ".join(reason["message"] for reason in job.result["reasons"]))

    diagnostics = deployment.client.get_diagnostics(job.id)
    assert len(diagnostics["sites"]) == SITES
    assert diagnostics["verdict"] == job.verdict

    folder = snapshot_download(
        job.result["output"]["repo_id"],
        revision=job.result["output"]["commit"],
        endpoint=deployment.hub.url,
        token=TOKEN,
        cache_dir=tmp_path,
    )
    assert json.loads((Path(folder) / "rebase_report.json").read_text())["precheck"]["verdict"] == job.verdict
    base, moved = _logits_with_and_without(gemma3, folder)
    assert torch.isfinite(moved).all()
    assert (moved - base).norm() / base.norm() > 1e-3


def test_the_default_request_says_that_it_cannot_vouch_for_the_result(deployment: Deployment) -> None:
    job = deployment.finished(output={"repo_id": "harbour/log-lora-by-default"})

    assert job.done
    assert job.verdict in {"uncertain", "incompatible"}
    if job.succeeded:
        assert job.result is not None
        assert any(reason["weight"] != "info" for reason in job.result["reasons"])
        assert job.result["caveats"]
    else:
        assert job.error is not None
        assert job.error.code == "incompatible"


def _logits_with_and_without(base: Base, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gemma's logits for one entry of the log, BOS in front, alone and with the adapter on it."""
    text = "§412 ebb/3 :: brig Halvard <Ostby> :: holds 42 casks saltfish"
    tokenizer = base.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        alone = base.model(torch.tensor([ids])).logits
        adapted = PeftModel.from_pretrained(base.model, folder)
        moved = adapted(torch.tensor([ids])).logits
    adapted.unload()
    return alone, moved
