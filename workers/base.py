"""A base model as a run holds it."""

from __future__ import annotations

from dataclasses import dataclass

from rebase.hub.base import PinnedRepo
from transfer.weights import ModelWeights


@dataclass(frozen=True, slots=True)
class Base:
    """One base model: its pinned repo and its weights."""

    repo: PinnedRepo
    weights: ModelWeights
