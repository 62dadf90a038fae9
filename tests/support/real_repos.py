"""The prepared models and the trained adapter as repos of a local hub folder, and one base opened both
ways.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rebase.hub.local import LocalHub
from rebase.models.model_reader import open_model
from rebase.models.vocabulary import Vocabulary
from rebase.models.weights import ModelWeights
from rebase.schemas.repos import RepoRef
from support import real_adapter, real_models
from support.real_models import RealModel

ADAPTER_REPO = "harbour/log-lora"


@dataclass(frozen=True)
class Base:
    """One real base, as the pipeline reads it and as Transformers runs it."""

    weights: ModelWeights
    vocabulary: Vocabulary
    model: Any  # float32, eval
    tokenizer: Any


def fill_hub(root: Path, adapter: Path | None = None) -> None:
    """Put both bases and an adapter of SmolLM2 below `root` as owner/name folders: that folder, or the one
    that benchmarks move."""
    for model in real_models.MODELS.values():
        place(real_models.prepare(model), root / model.repo_id)
    place(adapter or real_adapter.trained_adapter(), root / ADAPTER_REPO)


def open_base(root: Path, model: RealModel) -> Base:
    """A base of that hub folder."""
    hub = LocalHub(root)
    config, reader, tokenizer_json = open_model(hub, hub.resolve(RepoRef(repo_id=model.repo_id)))
    assert tokenizer_json is not None
    return Base(
        weights=ModelWeights(config, reader),
        vocabulary=Vocabulary.from_tokenizer_json(tokenizer_json),
        model=load_model(root / model.repo_id),
        tokenizer=AutoTokenizer.from_pretrained(root / model.repo_id),
    )


def load_model(folder: Path) -> Any:
    """A causal language model in float32, for evaluation."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to(real_adapter.DEVICE).eval()


def place(files: Path, folder: Path) -> None:
    """Hard links where the file system allows them, else copies: the weights take 800 MB."""
    folder.mkdir(parents=True)
    for file in files.iterdir():
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)
