"""Sums over paired activations, gathered when they are asked for and never all at once.

Moments of wide sites are large (11008 wide: 3 GB for both sides), and a model has hundreds of sites. So a
pass over the text gathers as many places as fit into a budget, beginning with the one that is asked for and
going on in the order in which the others will be. Memory does not grow with the text: only sums and a few
rows are kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rebase.lora.low_rank import Side
from rebase.methods.activation_maps import Moments, PairedRows
from workers.activations.ports import Place, PlacePair
from workers.activations.taps import rows_at
from workers.activations.text import PairedText, Passage
from workers.bases import Bases

HELD_OUT_ROWS = 512  # per place
SPILL_BYTES = 2**30  # on disk, of one base's rows while the other one is not loaded
Step = Callable[[int, int], None]  # passages done, of how many


@dataclass(frozen=True, slots=True)
class Collected:
    """What the fit may see, and rows that it does not see. `rows`: the first of the fit's own."""

    moments: Moments
    held_out: PairedRows
    rows: PairedRows


@dataclass
class Collector:
    """Passes over one text. `budget`: bytes of sums held at a time (one place at least is held)."""

    bases: Bases
    text: PairedText
    budget: int
    scratch: Path
    step: Step
    keep_rows: int = 0
    _order: tuple[PlacePair, ...] = ()
    _held: dict[PlacePair, Collected] = field(default_factory=dict)

    def plan(self, order: Sequence[PlacePair]) -> None:
        """In which order places will be asked for."""
        self._order = tuple(dict.fromkeys(order))
        self._held.clear()

    def get(self, pair: PlacePair) -> Collected:
        """Sums at one pair of places. Asking in the planned order costs the fewest passes."""
        if pair not in self._held:
            self._held.clear()
            self._held.update(self._collect(self._window(pair)))
        return self._held[pair]

    def _window(self, first: PlacePair) -> list[PlacePair]:
        at = self._order.index(first) if first in self._order else len(self._order)
        window, used = [first], self._size(first)
        for pair in self._order[at + 1 :]:
            used += self._size(pair)
            if used > self.budget:
                break
            window.append(pair)
        return window

    def _size(self, pair: PlacePair) -> int:
        p, q = self._widths(pair)
        return 8 * (p * p + q * q + p * q) + 4 * (HELD_OUT_ROWS + self.keep_rows) * (p + q)

    def _widths(self, pair: PlacePair) -> tuple[int, int]:
        return pair.source.width(self.bases.source.weights), pair.target.width(self.bases.target.weights)

    @torch.no_grad()
    def _collect(self, pairs: list[PlacePair]) -> dict[PlacePair, Collected]:
        device = self.bases.device
        sums = {pair: Moments.zeros(*self._widths(pair), device=device) for pair in pairs}
        held_out = {pair: _Rows(HELD_OUT_ROWS) for pair in pairs}
        rows = {pair: _Rows(self.keep_rows) for pair in pairs}
        total = len(self.text.passages)
        for done, (passage, ours, theirs) in enumerate(self._paired(pairs)):
            self.step(done, total)
            for pair in pairs:
                x, y = ours[pair.source].to(device), theirs[pair.target].to(device)
                if passage.held_out:
                    held_out[pair].add(x, y)
                else:
                    sums[pair].add(x, y)
                    rows[pair].add(x, y)
        self.step(total, total)
        widths = {pair: self._widths(pair) for pair in pairs}
        return {
            pair: Collected(sums[pair], held_out[pair].done(*widths[pair]), rows[pair].done(*widths[pair]))
            for pair in pairs
        }

    def _paired(
        self, pairs: list[PlacePair]
    ) -> Iterator[tuple[Passage, dict[Place, Tensor], dict[Place, Tensor]]]:
        """Both sides' rows, passage by passage."""
        passages = self.text.passages
        if self.bases.together:
            source, target = self.bases.model("source"), self.bases.model("target")
            for passage in passages:
                yield (
                    passage,
                    rows_at(source, "source", passage, _places(pairs, "source")),
                    rows_at(target, "target", passage, _places(pairs, "target")),
                )
            return
        for chunk in self._chunks(pairs):
            yield from self._alternating(chunk, pairs)

    def _alternating(
        self, chunk: list[Passage], pairs: list[PlacePair]
    ) -> Iterator[tuple[Passage, dict[Place, Tensor], dict[Place, Tensor]]]:
        """The source reads the whole chunk first; its rows wait on disk for the target's."""
        ours, theirs = _places(pairs, "source"), _places(pairs, "target")
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="rows-") as folder:
            files = [Path(folder) / f"{number}.safetensors" for number in range(len(chunk))]
            model = self.bases.model("source")
            for file, passage in zip(files, chunk, strict=True):
                found = rows_at(model, "source", passage, ours)
                save_file({str(place): rows.cpu().contiguous() for place, rows in found.items()}, file)
            del model
            model = self.bases.model("target")
            for file, passage in zip(files, chunk, strict=True):
                waiting = load_file(file)
                found = rows_at(model, "target", passage, theirs)
                yield passage, {place: waiting[str(place)] for place in ours}, found

    def _chunks(self, pairs: list[PlacePair]) -> Iterator[list[Passage]]:
        width = sum(place.width(self.bases.source.weights) for place in _places(pairs, "source"))
        chunk: list[Passage] = []
        used = 0
        for passage in self.text.passages:
            size = 4 * width * passage.positions
            if chunk and used + size > SPILL_BYTES:
                yield chunk
                chunk, used = [], 0
            chunk.append(passage)
            used += size
        if chunk:
            yield chunk


@dataclass
class _Rows:
    """The first `most` pairs of rows that come by, on the CPU."""

    most: int
    source: list[Tensor] = field(default_factory=list)
    target: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, source: Tensor, target: Tensor) -> None:
        room = self.most - self.count
        if room > 0:
            self.source.append(source[:room].cpu())
            self.target.append(target[:room].cpu())
            self.count += self.source[-1].shape[0]

    def done(self, p: int, q: int) -> PairedRows:
        if not self.count:
            return PairedRows(torch.zeros(0, p), torch.zeros(0, q))
        return PairedRows(torch.cat(self.source), torch.cat(self.target))


def _places(pairs: Sequence[PlacePair], side: Side) -> list[Place]:
    return sorted({pair.at(side) for pair in pairs})
