"""Collects second moments of paired activations lazily, never all at once.

Moments of wide sites are large (width 11008: 3 GB for both sides), and a model has hundreds of sites. Each
pass over the text therefore collects as many hook points as fit into a budget, starting with the requested
one and continuing in the planned order. Memory does not grow with the text: only sums and a few rows are
kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rebase.evidence.hook_points import HookPair, HookPoint
from rebase.evidence.hooks import capture_rows
from rebase.evidence.paired_text import PairedText, Passage
from rebase.lora.low_rank import Side
from rebase.methods.activation_maps import Moments, PairedRows
from rebase.models.base_pair import BasePair

HELD_OUT_ROWS = 512  # per hook point
ProgressCallback = Callable[[int, int], None]  # passages done, total


@dataclass(frozen=True, slots=True)
class CollectedActivations:
    """Moments for fitting, and held-out rows. `rows`: the first rows included in the moments."""

    moments: Moments
    held_out: PairedRows
    rows: PairedRows


@dataclass
class ActivationCollector:
    """Passes over one text. `budget`: maximum bytes of sums held at a time (at least one pair is held).
    `spill_bytes`: disk space for one base's rows while the other base is not loaded."""

    models: BasePair
    text: PairedText
    budget: int
    scratch_dir: Path
    report_progress: ProgressCallback
    keep_rows: int = 0
    spill_bytes: int = 2**30
    _order: tuple[HookPair, ...] = ()
    _collected: dict[HookPair, CollectedActivations] = field(default_factory=dict)

    def plan(self, order: Sequence[HookPair]) -> None:
        """Announce the order in which hook points will be requested."""
        self._order = tuple(dict.fromkeys(order))
        self._collected.clear()

    def get(self, pair: HookPair) -> CollectedActivations:
        """The activations of one hook pair. Requests in the planned order need the fewest passes."""
        if pair not in self._collected:
            self._collected.clear()
            self._collected.update(self._collect(self._window(pair)))
        return self._collected[pair]

    def _window(self, first: HookPair) -> list[HookPair]:
        index = self._order.index(first) if first in self._order else len(self._order)
        window, used = [first], self._estimate_bytes(first)
        for pair in self._order[index + 1 :]:
            used += self._estimate_bytes(pair)
            if used > self.budget:
                break
            window.append(pair)
        return window

    def _estimate_bytes(self, pair: HookPair) -> int:
        p, q = self._get_widths(pair)
        return 8 * (p * p + q * q + p * q) + 4 * (HELD_OUT_ROWS + self.keep_rows) * (p + q)

    def _get_widths(self, pair: HookPair) -> tuple[int, int]:
        return pair.source.width(self.models.source.weights), pair.target.width(self.models.target.weights)

    @torch.no_grad()
    def _collect(self, pairs: list[HookPair]) -> dict[HookPair, CollectedActivations]:
        device = self.models.device
        sums = {pair: Moments.zeros(*self._get_widths(pair), device=device) for pair in pairs}
        held_out = {pair: _RowBuffer(HELD_OUT_ROWS) for pair in pairs}
        rows = {pair: _RowBuffer(self.keep_rows) for pair in pairs}
        total = len(self.text.passages)
        for done, (passage, source_rows, target_rows) in enumerate(self._iter_paired_rows(pairs)):
            self.report_progress(done, total)
            for pair in pairs:
                x, y = source_rows[pair.source].to(device), target_rows[pair.target].to(device)
                if passage.held_out:
                    held_out[pair].add(x, y)
                else:
                    sums[pair].add(x, y)
                    rows[pair].add(x, y)
        self.report_progress(total, total)
        widths = {pair: self._get_widths(pair) for pair in pairs}
        return {
            pair: CollectedActivations(
                sums[pair],
                held_out[pair].to_paired_rows(*widths[pair]),
                rows[pair].to_paired_rows(*widths[pair]),
            )
            for pair in pairs
        }

    def _iter_paired_rows(
        self, pairs: list[HookPair]
    ) -> Iterator[tuple[Passage, dict[HookPoint, Tensor], dict[HookPoint, Tensor]]]:
        """Both sides' rows, passage by passage."""
        passages = self.text.passages
        if self.models.fit_together:
            source, target = self.models.get_model("source"), self.models.get_model("target")
            for passage in passages:
                yield (
                    passage,
                    capture_rows(source, "source", passage, _list_hook_points(pairs, "source")),
                    capture_rows(target, "target", passage, _list_hook_points(pairs, "target")),
                )
            return
        for chunk in self._split_into_chunks(pairs):
            yield from self._iter_alternating(chunk, pairs)

    def _iter_alternating(
        self, chunk: list[Passage], pairs: list[HookPair]
    ) -> Iterator[tuple[Passage, dict[HookPoint, Tensor], dict[HookPoint, Tensor]]]:
        """Run the source on the whole chunk first, spilling its rows to disk, then the target."""
        source_points, target_points = _list_hook_points(pairs, "source"), _list_hook_points(pairs, "target")
        self.scratch_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch_dir, prefix="rows-") as folder:
            files = [Path(folder) / f"{number}.safetensors" for number in range(len(chunk))]
            model = self.models.get_model("source")
            for file, passage in zip(files, chunk, strict=True):
                captured = capture_rows(model, "source", passage, source_points)
                save_file({str(place): rows.cpu().contiguous() for place, rows in captured.items()}, file)
            del model
            model = self.models.get_model("target")
            for file, passage in zip(files, chunk, strict=True):
                source_rows = load_file(file)
                captured = capture_rows(model, "target", passage, target_points)
                yield passage, {place: source_rows[str(place)] for place in source_points}, captured

    def _split_into_chunks(self, pairs: list[HookPair]) -> Iterator[list[Passage]]:
        width = sum(place.width(self.models.source.weights) for place in _list_hook_points(pairs, "source"))
        chunk: list[Passage] = []
        used = 0
        for passage in self.text.passages:
            size = 4 * width * passage.num_positions
            if chunk and used + size > self.spill_bytes:
                yield chunk
                chunk, used = [], 0
            chunk.append(passage)
            used += size
        if chunk:
            yield chunk


@dataclass
class _RowBuffer:
    """The first `max_rows` row pairs added, on the CPU."""

    max_rows: int
    source: list[Tensor] = field(default_factory=list)
    target: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, source: Tensor, target: Tensor) -> None:
        remaining = self.max_rows - self.count
        if remaining > 0:
            self.source.append(source[:remaining].cpu())
            self.target.append(target[:remaining].cpu())
            self.count += self.source[-1].shape[0]

    def to_paired_rows(self, p: int, q: int) -> PairedRows:
        if not self.count:
            return PairedRows(torch.zeros(0, p), torch.zeros(0, q))
        return PairedRows(torch.cat(self.source), torch.cat(self.target))


def _list_hook_points(pairs: Sequence[HookPair], side: Side) -> list[HookPoint]:
    return sorted({pair.on_side(side) for pair in pairs})
