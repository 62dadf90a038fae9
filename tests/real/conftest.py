"""The real models, prepared once per machine and opened once per session, and the committed adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import committed_adapters
from support.real_models import GEMMA3, SMOLLM2
from support.real_release import add_next_release
from support.real_repos import Base, fill_hub, open_base


@pytest.fixture(scope="session")
def adapter_folder() -> Path:
    return committed_adapters.adapter_folder()


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory: pytest.TempPathFactory, adapter_folder: Path) -> Path:
    """A local hub folder with both bases and the adapter."""
    root = tmp_path_factory.mktemp("hub")
    fill_hub(root, adapter_folder)
    return root


@pytest.fixture(scope="session")
def smollm2(hub_root: Path) -> Base:
    return open_base(hub_root, SMOLLM2)


@pytest.fixture(scope="session")
def gemma3(hub_root: Path) -> Base:
    return open_base(hub_root, GEMMA3)


@pytest.fixture(scope="session")
def next_release(hub_root: Path) -> Path:
    """SmolLM2 with every linear weight slightly changed."""
    return add_next_release(hub_root)
