"""A base model as a run holds it."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.weights import ModelWeights
from workers.hub.port import PinnedRepo


@dataclass(frozen=True, slots=True)
class Base:
    """One base model: its pinned repo and its weights."""

    repo: PinnedRepo
    weights: ModelWeights
