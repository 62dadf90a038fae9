"""What heads are trained on: for each passage what the source says, and what the target says of itself.

One file a passage and side, so that memory does not grow with the text, only one base is needed at a time,
and whoever takes a job over finds what is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebase.lora.low_rank import LowRank, Side, Site
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from rebase.training.losses import SharedTokenIds, shifted_target
from workers.activations.text import PairedText, Passage
from workers.models import TextModel
from workers.training.checkpoint import load, save
from workers.training.heard import listen
from workers.training.logits import final_states, outcomes_of


@dataclass(frozen=True, slots=True)
class Lesson:
    """One passage: the target's `ids` (length,) and positions `at` (n,); `columns` (n, k): shared tokens
    listed; `wanted` (n, k + 1): log-probabilities. `states` (n, hidden of the source), what final states
    should become through a head, and `begun` (n, hidden), what is first taken off them; None where nobody
    asks."""

    ids: Tensor
    at: Tensor
    columns: Tensor
    wanted: Tensor
    states: Tensor | None
    begun: Tensor | None


@dataclass(frozen=True, slots=True)
class Lessons:
    """Files of one text, two bases and one adapter. `identity` names all that they depend on."""

    folder: Path
    identity: str
    text: PairedText
    common: SharedTokenIds
    listed: int
    temperature: float
    shift: bool
    states: bool

    def passages(self, *, held_out: bool) -> list[int]:
        """Numbers of those to learn from, or of those to measure on."""
        return [at for at, passage in enumerate(self.text.passages) if passage.held_out == held_out]

    def hear(self, source: TextModel, deltas: Mapping[Site, LowRank], watch: ProgressReporter) -> float:
        """What the source says of every passage; returns S+Δ's mean probability of shared tokens."""
        shared = self.common.source.to(source.device)
        covered = 0.0
        for number, passage in self._steps(watch, 0):
            found = self._load("source", number)
            if found is None:
                ids, at = _on(source, passage, "source")
                heard = listen(source, deltas, ids, at, shared, self.listed, self.temperature)
                found = {name: getattr(heard, name) for name in ("columns", "teacher", "source", "covered")}
                if self.states:
                    found |= {"teacher_states": heard.teacher_states, "source_states": heard.source_states}
                save(self._path("source", number), found, {}, self.identity)
            covered += float(found["covered"].sum())
        return covered / self.text.positions

    @torch.no_grad()
    def look_at(self, target: TextModel, watch: ProgressReporter) -> None:
        """What the untouched target says of every passage, on the tokens that the source's side has
        listed."""
        shared = self.common.target.to(target.device)
        for number, passage in self._steps(watch, 1):
            if self._load("target", number) is None:
                ids, at = _on(target, passage, "target")
                states = final_states(target, ids)[at]
                columns = self._need("source", number)["columns"].long().to(target.device)
                found = {"base": outcomes_of(target, states, shared, columns, self.temperature)}
                if self.states:
                    found |= {"states": states.float()}
                save(self._path("target", number), found, {}, self.identity)

    def lesson(self, target: TextModel, number: int) -> Lesson:
        """One passage on the target's device. `hear` and `look_at` come first."""
        ids, at = _on(target, self.text.passages[number], "target")
        told, own = self._need("source", number), self._need("target", number)
        wanted = (
            shifted_target(own["base"], told["teacher"], told["source"]) if self.shift else told["teacher"]
        )
        states = begun = None
        if self.states:
            states, begun = told["teacher_states"], torch.zeros_like(own["states"])
            if self.shift:
                states, begun = states - told["source_states"], own["states"]
            states, begun = states.to(target.device), begun.to(target.device)
        columns = told["columns"].long().to(target.device)
        return Lesson(ids, at, columns, wanted.to(target.device), states, begun)

    def own(self, number: int) -> Tensor:
        """The untouched target's log-probabilities, (n, k + 1)."""
        return self._need("target", number)["base"]

    def both_states(self, number: int) -> tuple[Tensor, Tensor]:
        """Final states of both bases alone: (n, hidden of the source), (n, hidden of the target)."""
        return self._need("source", number)["source_states"], self._need("target", number)["states"]

    def _steps(self, watch: ProgressReporter, side: int) -> Iterator[tuple[int, Passage]]:
        count = len(self.text.passages)
        for number, passage in enumerate(self.text.passages):
            watch.update(Phase.COLLECTING, side * count + number, 2 * count, "passages")
            yield number, passage

    def _path(self, side: Side, number: int) -> Path:
        return self.folder / f"{side}-{number:06d}.safetensors"

    def _load(self, side: Side, number: int) -> dict[str, Tensor] | None:
        found = load(self._path(side, number), self.identity)
        return None if found is None else found[0]

    def _need(self, side: Side, number: int) -> dict[str, Tensor]:
        found = self._load(side, number)
        if found is None:
            raise LookupError(f"passage {number} of the {side} was not prepared, or is damaged")
        return found


def _on(base: TextModel, passage: Passage, side: Side) -> tuple[Tensor, Tensor]:
    return torch.tensor(passage.ids(side), device=base.device), passage.at(side).to(base.device)
