"""Scores of examples: greedy answers, likelihood of choices, nats per byte of texts.

    Measure: deltas of the target ─▶ one score per example, higher is better

`ExampleScorer.measure` is that function for a request's examples. It returns only the *primary* scores, all
of one kind, so that their mean is meaningful: with `accuracy`, 0 or 1 for each example that has an answer
(texts are reported separately); with `likelihood`, minus nats per byte of each example's correct text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from rebase.evaluation.loglikelihood import Loglikelihood, TextScorer
from rebase.lora.low_rank import LowRank, Side, Site
from rebase.models.base_pair import BasePair
from rebase.models.causal_lm import CausalLM, with_deltas
from rebase.report.progress import ProgressReporter
from rebase.schemas.evaluation import ChoiceExample, EvaluationSpec, Example, GenerationExample, TextExample
from rebase.schemas.states import Phase


@dataclass
class ExampleProgress:
    """Examples done and expected (None: unknown). Each model counts every example once."""

    reporter: ProgressReporter
    total: int | None = None
    done: int = 0
    phase: Phase = Phase.EVALUATING

    def start(self, total: int | None) -> None:
        """Reset, with a new expected total."""
        self.total, self.done = total, 0
        self.add(0)

    def add(self, count: int) -> None:
        """Add to the count of examples done. Raises what `reporter` raises."""
        self.done += count
        self.reporter.update(self.phase, self.done, self.total, "examples")


Deltas = Mapping[Site, LowRank]
Measure = Callable[[Deltas], tuple[float, ...]]
PrimaryMetric = Literal["accuracy", "likelihood"]

NATS_METRICS = {
    GenerationExample: "answer_nats_per_byte",
    ChoiceExample: "choice_nats_per_byte",
    TextExample: "text_nats_per_byte",
}
ACCURACY_METRICS = {GenerationExample: "exact_match", ChoiceExample: "choice_accuracy"}
_BLOCK_SIZE = 32  # examples between progress updates
_MAX_NATS_PER_BYTE = 100.0  # used if logits are not finite; random tokens cost about 6


def get_primary_metric(spec: EvaluationSpec) -> PrimaryMetric | None:
    """The metric that decides between two adapters; None without examples."""
    if not spec.examples:
        return None
    answers = any(not isinstance(example, TextExample) for example in spec.examples)
    return spec.score or ("accuracy" if answers else "likelihood")


@contextmanager
def apply_deltas(base: CausalLM, deltas: Deltas) -> Iterator[None]:
    """Apply the deltas (on any device) to the base within the block."""
    with with_deltas(
        base,
        {
            site: LowRank(delta.B.to(base.device, torch.float32), delta.A.to(base.device, torch.float32))
            for site, delta in deltas.items()
        },
    ):
        yield


@dataclass
class ExampleScorer:
    """Scores both bases on a request's examples.

    The same deltas give the same scores, in the same order. `notes`: sentences about truncated examples.
    """

    models: BasePair
    spec: EvaluationSpec
    progress: ExampleProgress
    notes: dict[str, None] = field(default_factory=dict)

    def measure(self, deltas: Deltas) -> tuple[float, ...]:
        """A `Measure`: scores of the target with these deltas; empty deltas mean the target alone."""
        return self.get_primary_scores(self.score_examples("target", deltas))

    def score_examples(self, side: Side, deltas: Deltas) -> tuple[dict[str, float], ...]:
        """Metrics by name for each example; which ones depends on its kind."""
        base = self.models.get_model(side)
        text_scorer = TextScorer(base)
        results: list[dict[str, float]] = [{} for _ in self.spec.examples]
        with apply_deltas(base, deltas):
            for indices in self._iter_blocks():
                block = [self.spec.examples[at] for at in indices]
                for at, metrics in zip(indices, self._score_block(text_scorer, block), strict=True):
                    results[at] = metrics
                self.progress.add(len(block))
        self.notes |= dict.fromkeys(f"With the {side} base, {note}." for note in text_scorer.notes)
        return tuple(results)

    def get_primary_scores(self, metrics: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
        """The primary scores. Empty if the request has no examples."""
        kinds = [(type(example), row) for example, row in zip(self.spec.examples, metrics, strict=True)]
        if get_primary_metric(self.spec) == "accuracy":
            return tuple(row[ACCURACY_METRICS[kind]] for kind, row in kinds if kind in ACCURACY_METRICS)
        return tuple(-row[NATS_METRICS[kind]] for kind, row in kinds)

    def _iter_blocks(self) -> Iterator[list[int]]:
        """Blocks of example indices, each of one kind and of similar length."""
        for kind in (GenerationExample, ChoiceExample, TextExample):
            indices = [at for at, example in enumerate(self.spec.examples) if isinstance(example, kind)]
            indices.sort(key=lambda at: (-_count_characters(self.spec.examples[at]), at))
            for start in range(0, len(indices), _BLOCK_SIZE):
                yield indices[start : start + _BLOCK_SIZE]

    def _score_block(self, text_scorer: TextScorer, block: Sequence[Example]) -> list[dict[str, float]]:
        generations = [example for example in block if isinstance(example, GenerationExample)]
        choices = [example for example in block if isinstance(example, ChoiceExample)]
        texts = [example for example in block if isinstance(example, TextExample)]
        return [
            *(self._score_answers(text_scorer, generations) if generations else ()),
            *(self._score_choices(text_scorer, choices) if choices else ()),
            *({"text_nats_per_byte": _clamp(one.per_byte)} for one in self._score_texts(text_scorer, texts)),
        ]

    def _score_answers(
        self, text_scorer: TextScorer, examples: Sequence[GenerationExample]
    ) -> Iterator[dict[str, float]]:
        """Nats of the correct answer, and exact match of the generated one if accuracy is the primary
        metric."""
        likelihoods = text_scorer.loglikelihood([(example.prompt, example.answer) for example in examples])
        generated: Sequence[str | None] = [None] * len(examples)
        if get_primary_metric(self.spec) == "accuracy":
            generated = text_scorer.generate_until(
                [example.prompt for example in examples], self.spec.max_tokens
            )
        for example, likelihood, text in zip(examples, likelihoods, generated, strict=True):
            nats = {
                "answer_nats_per_byte": _clamp(likelihood.per_byte),
                "answer_nats_per_token": _clamp(likelihood.per_token),
            }
            accuracy = {} if text is None else {"exact_match": float(self._matches(text, example.answer))}
            if text is not None and likelihood.num_tokens > (
                max_new_tokens := text_scorer.clamp_new_tokens(self.spec.max_tokens)
            ):
                text_scorer.notes[
                    f"correct answer(s) are longer than the {max_new_tokens} tokens that are generated"
                ] = None
            yield accuracy | nats

    def _matches(self, text: str, answer: str) -> bool:
        """Equal up to the first stop string, ignoring surrounding white space."""
        for stop in self.spec.stop:
            text = text.partition(stop)[0]
        return text.strip() == answer.strip()

    def _score_choices(
        self, text_scorer: TextScorer, examples: Sequence[ChoiceExample]
    ) -> Iterator[dict[str, float]]:
        pairs = [(example.prompt, choice) for example in examples for choice in example.choices]
        likelihoods = iter(text_scorer.loglikelihood(pairs))
        for example in examples:
            choice_likelihoods = [next(likelihoods) for _ in example.choices]
            nats = [
                _clamp(one.per_byte if self.spec.choices_per_byte else one.nats, math.inf)
                for one in choice_likelihoods
            ]
            # On a tie the first choice counts as chosen.
            chosen = min(range(len(choice_likelihoods)), key=lambda at: nats[at])
            yield {
                "choice_accuracy": float(chosen == example.label),
                "choice_nats_per_byte": _clamp(choice_likelihoods[example.label].per_byte),
            }

    def _score_texts(self, text_scorer: TextScorer, examples: Sequence[TextExample]) -> list[Loglikelihood]:
        return text_scorer.loglikelihood([("", example.text) for example in examples]) if examples else []


def _count_characters(example: Example) -> int:
    if isinstance(example, TextExample):
        return len(example.text)
    rest = example.answer if isinstance(example, GenerationExample) else max(example.choices, key=len)
    return len(example.prompt) + len(rest)


def _clamp(value: float, maximum: float = _MAX_NATS_PER_BYTE) -> float:
    """`maximum` in place of values that are larger or not finite."""
    return min(value, maximum) if math.isfinite(value) else maximum
