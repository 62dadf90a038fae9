"""Training, really and briefly, by the function that also makes the committed adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import committed_adapters, real_adapter
from support.prepared import NotPrepared
from support.real_adapter import HARBOUR_LOG, Recipe
from support.real_models import GEMMA3, SMOLLM2

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

BRIEF = Recipe(steps=7, batch=2, rank=1, alpha=2, learning_rate=5e-3, warmup=2, entries=60)


def test_a_few_steps_teach_an_adapter_some_of_a_language(tmp_path: Path) -> None:
    losses = real_adapter.train(SMOLLM2, HARBOUR_LOG, BRIEF, tmp_path, half=True, held_out=4)["held_out"]
    print(f"\nheld-out loss: {losses['before']} -> {losses['after']} nats per token")
    assert losses["after"] < losses["before"] - 1.0
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 30
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert all(tensor.any() for tensor in tensors.values())


@pytest.mark.parametrize("base", committed_adapters.BASES, ids=lambda base: base.name)
def test_the_committed_adapters_are_small_and_learnt_their_language(base: real_adapter.RealModel) -> None:
    folder = committed_adapters.adapter_folder(base)
    losses = committed_adapters.losses(folder)
    assert losses["after"] < losses["before"] - 3.0
    assert sum(file.stat().st_size for file in folder.iterdir()) < 700_000


def test_a_committed_adapter_that_was_changed_is_refused(tmp_path: Path) -> None:
    root = Path(shutil.copytree(committed_adapters.FOLDER, tmp_path / "adapters"))
    folder = committed_adapters.adapter_folder(GEMMA3, root=root)
    (folder / "adapter_model.safetensors").write_bytes(b"rotten")
    with pytest.raises(NotPrepared, match="restore it with git"):
        committed_adapters.adapter_folder(GEMMA3, root=root)
