"""The real models and the trained adapter, prepared once per machine, and a hub folder with all three."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from core.requests import RepoRef
from support import real_adapter, real_models
from support.real_models import GEMMA3, SMOLLM2, RealModel
from transfer.vocabulary import Vocabulary
from transfer.weights import ModelWeights
from workers.hub.local import LocalHub
from workers.tensors.model_reader import open_model

ADAPTER_REPO = "harbour/log-lora"

hf_logging.disable_progress_bar()


@dataclass(frozen=True)
class Base:
    """One real base, as the pipeline reads it and as Transformers runs it."""

    weights: ModelWeights
    vocabulary: Vocabulary
    model: Any  # float32, eval
    tokenizer: Any


@pytest.fixture(scope="session")
def adapter_folder() -> Path:
    return real_adapter.trained_adapter()


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory, adapter_folder: Path) -> Path:
    """A local hub folder with both bases and the adapter."""
    root = tmp_path_factory.mktemp("hub")
    for model in (SMOLLM2, GEMMA3):
        _place(real_models.prepare(model), root / model.repo_id)
    _place(adapter_folder, root / ADAPTER_REPO)
    return root


@pytest.fixture(scope="session")
def smollm2(hub_root: Path) -> Base:
    return _open(hub_root, SMOLLM2)


@pytest.fixture(scope="session")
def gemma3(hub_root: Path) -> Base:
    return _open(hub_root, GEMMA3)


def _open(hub_root: Path, model: RealModel) -> Base:
    hub = LocalHub(hub_root)
    config, reader, tokenizer_json = open_model(hub, hub.resolve(RepoRef(repo_id=model.repo_id)))
    assert tokenizer_json is not None
    folder = hub_root / model.repo_id
    return Base(
        weights=ModelWeights(config, reader),
        vocabulary=Vocabulary.from_tokenizer_json(tokenizer_json),
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )


def _place(files: Path, folder: Path) -> None:
    """Hard links where the file system allows them, else copies: the weights take 800 MB."""
    folder.mkdir(parents=True)
    for file in files.iterdir():
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)
