"""Scores of examples: greedy answers, likelihood of choices, nats per byte of texts.

    Measure: deltas of the target ─▶ one score per example, higher is better

`Scorer.measure` is that function for a request's examples. It returns the *headline* scores only, all of one
kind, so that their mean means something: with `accuracy`, 0 or 1 for each example that has an answer (texts
beside them are reported, not mixed in); with `likelihood`, minus nats per byte of each example's right text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from rebase.lora.low_rank import LowRank, Side, Site
from rebase.schemas.evaluation import ChoiceExample, EvaluationSpec, Example, GenerationExample, TextExample
from workers.bases import Bases
from workers.evaluation.progress import Progress
from workers.evaluation.reading import Continued, Reader
from workers.models import TextModel, updated

Deltas = Mapping[Site, LowRank]
Measure = Callable[[Deltas], tuple[float, ...]]
Headline = Literal["accuracy", "likelihood"]

NATS = {
    GenerationExample: "answer_nats_per_byte",
    ChoiceExample: "choice_nats_per_byte",
    TextExample: "text_nats_per_byte",
}
RIGHT = {GenerationExample: "exact_match", ChoiceExample: "choice_accuracy"}
_BLOCK = 32  # examples between two words of progress
_WORST = 100.0  # nats per byte where the logits are no numbers; random tokens cost some 6


def headline_of(spec: EvaluationSpec) -> Headline | None:
    """What decides between two adapters; None where there are no examples."""
    if not spec.examples:
        return None
    answers = any(not isinstance(example, TextExample) for example in spec.examples)
    return spec.score or ("accuracy" if answers else "likelihood")


@contextmanager
def applied(base: TextModel, deltas: Deltas) -> Iterator[None]:
    """The base with these deltas, wherever they lie, until the block is left."""
    with updated(
        base,
        {
            site: LowRank(delta.B.to(base.device, torch.float32), delta.A.to(base.device, torch.float32))
            for site, delta in deltas.items()
        },
    ):
        yield


@dataclass
class Scorer:
    """A request's examples and the two bases that are to work on them.

    The same deltas give the same scores, in the same order. `notes`: sentences about examples that had to be
    cut.
    """

    bases: Bases
    spec: EvaluationSpec
    progress: Progress
    notes: dict[str, None] = field(default_factory=dict)

    def measure(self, deltas: Deltas) -> tuple[float, ...]:
        """A `Measure`: the target with these deltas; empty ones are the target alone."""
        return self.headline(self.figures("target", deltas))

    def figures(self, side: Side, deltas: Deltas) -> tuple[dict[str, float], ...]:
        """For each example its figures by name; an example has those of its kind only."""
        base = self.bases.model(side)
        reader = Reader(base)
        found: list[dict[str, float]] = [{} for _ in self.spec.examples]
        with applied(base, deltas):
            for places in self._blocks():
                block = [self.spec.examples[at] for at in places]
                for at, figures in zip(places, self._scored(reader, block), strict=True):
                    found[at] = figures
                self.progress.add(len(block))
        self.notes |= dict.fromkeys(f"In the {side} base {note}." for note in reader.notes)
        return tuple(found)

    def headline(self, figures: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
        """The scores that decide. Empty where the request has no examples."""
        kinds = [(type(example), row) for example, row in zip(self.spec.examples, figures, strict=True)]
        if headline_of(self.spec) == "accuracy":
            return tuple(row[RIGHT[kind]] for kind, row in kinds if kind in RIGHT)
        return tuple(-row[NATS[kind]] for kind, row in kinds)

    def _blocks(self) -> Iterator[list[int]]:
        """Places of some examples of one kind at a time, long ones beside long ones."""
        for kind in (GenerationExample, ChoiceExample, TextExample):
            places = [at for at, example in enumerate(self.spec.examples) if isinstance(example, kind)]
            places.sort(key=lambda at: (-_length(self.spec.examples[at]), at))
            for start in range(0, len(places), _BLOCK):
                yield places[start : start + _BLOCK]

    def _scored(self, reader: Reader, block: Sequence[Example]) -> list[dict[str, float]]:
        generations = [example for example in block if isinstance(example, GenerationExample)]
        choices = [example for example in block if isinstance(example, ChoiceExample)]
        texts = [example for example in block if isinstance(example, TextExample)]
        return [
            *(self._answers(reader, generations) if generations else ()),
            *(self._choices(reader, choices) if choices else ()),
            *({"text_nats_per_byte": _finite(one.per_byte)} for one in self._texts(reader, texts)),
        ]

    def _answers(self, reader: Reader, examples: Sequence[GenerationExample]) -> Iterator[dict[str, float]]:
        """Nats of the right answer; and unless likelihood decides, is what the model writes that answer?"""
        costs = reader.continued([(example.prompt, example.answer) for example in examples])
        wrote: Sequence[str | None] = [None] * len(examples)
        if headline_of(self.spec) == "accuracy":
            wrote = reader.written([example.prompt for example in examples], self.spec.max_tokens)
        for example, cost, text in zip(examples, costs, wrote, strict=True):
            nats = {
                "answer_nats_per_byte": _finite(cost.per_byte),
                "answer_nats_per_token": _finite(cost.per_token),
            }
            right = {} if text is None else {"exact_match": float(self._is(text, example.answer))}
            if text is not None and cost.tokens > (most := reader.longest(self.spec.max_tokens)):
                reader.notes[f"right answer(s) have more than the {most} tokens that are written"] = None
            yield right | nats

    def _is(self, text: str, answer: str) -> bool:
        """The same but for white space around it, up to the first stop."""
        for stop in self.spec.stop:
            text = text.partition(stop)[0]
        return text.strip() == answer.strip()

    def _choices(self, reader: Reader, examples: Sequence[ChoiceExample]) -> Iterator[dict[str, float]]:
        pairs = [(example.prompt, choice) for example in examples for choice in example.choices]
        costs = iter(reader.continued(pairs))
        for example in examples:
            own = [next(costs) for _ in example.choices]
            nats = [
                _finite(one.per_byte if self.spec.choices_per_byte else one.nats, math.inf) for one in own
            ]
            # Of equals the first counts as chosen, whatever is right.
            chosen = min(range(len(own)), key=lambda at: nats[at])
            yield {
                "choice_accuracy": float(chosen == example.label),
                "choice_nats_per_byte": _finite(own[example.label].per_byte),
            }

    def _texts(self, reader: Reader, examples: Sequence[TextExample]) -> list[Continued]:
        return reader.continued([("", example.text) for example in examples]) if examples else []


def _length(example: Example) -> int:
    if isinstance(example, TextExample):
        return len(example.text)
    rest = example.answer if isinstance(example, GenerationExample) else max(example.choices, key=len)
    return len(example.prompt) + len(rest)


def _finite(value: float, worst: float = _WORST) -> float:
    """`worst` in place of what is no number, or worse."""
    return min(value, worst) if math.isfinite(value) else worst
