"""Training data of CAST: the predictions of the source and of the unchanged target for each passage.

One file per passage and side, so that memory does not grow with the text, only one model is loaded at a time,
and another worker can resume the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebase.evidence.paired_text import PairedText, Passage
from rebase.lora.low_rank import LowRank, Side, Site
from rebase.models.causal_lm import CausalLM
from rebase.report.progress import ProgressReporter
from rebase.schemas.states import Phase
from rebase.training.checkpoint import load_checkpoint, save_checkpoint
from rebase.training.losses import SharedTokenIds, shifted_target
from rebase.training.teacher_logits import compute_teacher_logits
from rebase.training.vocab_chunks import compute_final_states, compute_listed_logprobs


@dataclass(frozen=True, slots=True)
class TeacherExample:
    """One passage: the target's `ids` (length,) and `positions` (n,); `columns` (n, k): listed shared tokens;
    `target_logprobs` (n, k + 1): what the target should predict. `teacher_states` (n, hidden of the source):
    what the projected final states should match; `base_states` (n, hidden): what is subtracted from them
    first. Both are None without the state loss."""

    ids: Tensor
    positions: Tensor
    columns: Tensor
    target_logprobs: Tensor
    teacher_states: Tensor | None
    base_states: Tensor | None


@dataclass(frozen=True, slots=True)
class TeacherDataset:
    """Files for one text, two bases and one adapter. `identity`: digest of everything they depend on."""

    folder: Path
    identity: str
    text: PairedText
    shared_tokens: SharedTokenIds
    max_columns: int
    temperature: float
    use_shift: bool
    with_states: bool

    def select_passages(self, *, held_out: bool) -> list[int]:
        """Indices of the training passages, or of the held-out ones."""
        return [at for at, passage in enumerate(self.text.passages) if passage.held_out == held_out]

    def cache_source(
        self, source: CausalLM, deltas: Mapping[Site, LowRank], progress: ProgressReporter
    ) -> float:
        """Store the source's predictions for every passage; returns S+Δ's mean probability of the shared
        tokens."""
        shared_ids = self.shared_tokens.source.to(source.device)
        coverage = 0.0
        for number, passage in self._iter_passages(progress, 0):
            tensors = self._load("source", number)
            if tensors is None:
                ids, positions = _make_tensors(source, passage, "source")
                teacher_logits = compute_teacher_logits(
                    source, deltas, ids, positions, shared_ids, self.max_columns, self.temperature
                )
                tensors = {
                    name: getattr(teacher_logits, name)
                    for name in ("columns", "teacher", "source", "covered")
                }
                if self.with_states:
                    tensors |= {
                        "teacher_states": teacher_logits.teacher_states,
                        "source_states": teacher_logits.source_states,
                    }
                save_checkpoint(self._path("source", number), tensors, {}, self.identity)
            coverage += float(tensors["covered"].sum())
        return coverage / self.text.num_positions

    @torch.no_grad()
    def cache_target(self, target: CausalLM, progress: ProgressReporter) -> None:
        """Store the unchanged target's predictions for every passage, on the tokens listed by
        `cache_source`."""
        shared_ids = self.shared_tokens.target.to(target.device)
        for number, passage in self._iter_passages(progress, 1):
            if self._load("target", number) is None:
                ids, positions = _make_tensors(target, passage, "target")
                states = compute_final_states(target, ids)[positions]
                columns = self._load_required("source", number)["columns"].long().to(target.device)
                tensors = {
                    "base": compute_listed_logprobs(target, states, shared_ids, columns, self.temperature)
                }
                if self.with_states:
                    tensors |= {"states": states.float()}
                save_checkpoint(self._path("target", number), tensors, {}, self.identity)

    def load_example(self, target: CausalLM, number: int) -> TeacherExample:
        """One passage on the target's device. Needs `cache_source` and `cache_target` first."""
        ids, positions = _make_tensors(target, self.text.passages[number], "target")
        source_tensors, target_tensors = (
            self._load_required("source", number),
            self._load_required("target", number),
        )
        target_logprobs = (
            shifted_target(target_tensors["base"], source_tensors["teacher"], source_tensors["source"])
            if self.use_shift
            else source_tensors["teacher"]
        )
        teacher_states = base_states = None
        if self.with_states:
            teacher_states, base_states = (
                source_tensors["teacher_states"],
                torch.zeros_like(target_tensors["states"]),
            )
            if self.use_shift:
                teacher_states, base_states = (
                    teacher_states - source_tensors["source_states"],
                    target_tensors["states"],
                )
            teacher_states, base_states = teacher_states.to(target.device), base_states.to(target.device)
        columns = source_tensors["columns"].long().to(target.device)
        return TeacherExample(
            ids, positions, columns, target_logprobs.to(target.device), teacher_states, base_states
        )

    def load_base_logprobs(self, number: int) -> Tensor:
        """The unchanged target's log-probabilities, (n, k + 1)."""
        return self._load_required("target", number)["base"]

    def load_base_states(self, number: int) -> tuple[Tensor, Tensor]:
        """Final states of both base models: (n, hidden of the source), (n, hidden of the target)."""
        return self._load_required("source", number)["source_states"], self._load_required("target", number)[
            "states"
        ]

    def _iter_passages(self, progress: ProgressReporter, pass_index: int) -> Iterator[tuple[int, Passage]]:
        count = len(self.text.passages)
        for number, passage in enumerate(self.text.passages):
            progress.update(Phase.COLLECTING, pass_index * count + number, 2 * count, "passages")
            yield number, passage

    def _path(self, side: Side, number: int) -> Path:
        return self.folder / f"{side}-{number:06d}.safetensors"

    def _load(self, side: Side, number: int) -> dict[str, Tensor] | None:
        checkpoint = load_checkpoint(self._path(side, number), self.identity)
        return None if checkpoint is None else checkpoint[0]

    def _load_required(self, side: Side, number: int) -> dict[str, Tensor]:
        tensors = self._load(side, number)
        if tensors is None:
            raise LookupError(f"passage {number} of the {side} was not prepared, or is damaged")
        return tensors


def _make_tensors(base: CausalLM, passage: Passage, side: Side) -> tuple[Tensor, Tensor]:
    return torch.tensor(passage.ids(side), device=base.device), passage.paired_positions(side).to(base.device)
