"""Log-likelihoods of continuations under a model, and greedy generation.

Texts start with BOS, or with the document separator if the tokenizer adds no BOS. A prompt and its
continuation are tokenized together; tokens that end inside the continuation count as its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rebase.models.causal_lm import CausalLM, Encoding
from rebase.models.generation import encode_with_bos, generate, get_bos_id, get_max_positions
from rebase.models.logprobs import PassLimits, compute_token_logprobs

_BATCH_SIZE = 32  # prompts


@dataclass(frozen=True, slots=True)
class Loglikelihood:
    """−log P of a text given its prompt, in nats, with its length in bytes and tokens. `is_greedy`: every
    token was the most likely one."""

    nats: float
    num_bytes: int
    num_tokens: int
    is_greedy: bool

    @property
    def per_byte(self) -> float:
        """Nats per byte, comparable across tokenizers."""
        return self.nats / max(self.num_bytes, 1)

    @property
    def per_token(self) -> float:
        """Nats per token of this model."""
        return self.nats / max(self.num_tokens, 1)


class TextScorer:
    """Scores texts with a model in its current state. `notes`: what was truncated. Without
    `separator_as_bos`, only a BOS is put before a prompt, as in lm-evaluation-harness. `limits`: of one
    forward pass; default what suits the device."""

    def __init__(
        self, base: CausalLM, *, separator_as_bos: bool = True, limits: PassLimits | None = None
    ) -> None:
        self.base = base
        self.limits = limits
        self.separator_as_bos = separator_as_bos
        self.max_positions = get_max_positions(base)
        self.notes: dict[str, None] = {}

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Loglikelihood]:
        """Log-likelihoods of (prompt, text) pairs. If too long, the prompt is truncated from the left, or
        without a prompt the text from the right."""
        encodings = [self._encode_pair(prompt, text) for prompt, text in pairs]
        text_positions = [
            _find_text_positions(row, len(prompt))
            for (row, _), (prompt, _) in zip(encodings, pairs, strict=True)
        ]
        first_positions = [
            own[0] if own else len(row.ids) for own, (row, _) in zip(text_positions, encodings, strict=True)
        ]
        rows = [row.ids for row, _ in encodings]
        row_logprobs = compute_token_logprobs(self.base, rows, first_positions, limits=self.limits)
        results = []
        for (prompt, text), (row, cut), own, logprobs in zip(
            pairs, encodings, text_positions, row_logprobs, strict=True
        ):
            text_logprobs = [logprobs[at - own[0]] for at in own]
            nats = -math.fsum(log for log, _ in text_logprobs) if own else math.inf
            is_greedy = bool(own) and all(likeliest for _, likeliest in text_logprobs)
            num_bytes = _count_bytes(prompt + text, len(prompt), row, own, cut)
            results.append(Loglikelihood(nats, num_bytes, len(own), is_greedy))
        return results

    def generate_until(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Greedy continuations of the prompts, until EOS or `max_new_tokens` tokens."""
        max_new_tokens = self.clamp_new_tokens(max_new_tokens)
        rows = []
        for prompt in prompts:
            ids = self._encode(prompt, bool(prompt)).ids
            rows.append(
                self._truncate_left(
                    ids, self.max_positions - max_new_tokens, "prompt(s) were cut at the beginning"
                )
            )
        texts: list[str] = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda at: (-len(rows[at]), at))
        for start in range(0, len(order), _BATCH_SIZE):
            indices = order[start : start + _BATCH_SIZE]
            generated = generate(
                self.base, [rows[at] for at in indices], max_new_tokens, temperature=0.0, top_p=1.0, seed=0
            )
            for at, ids in zip(indices, generated, strict=True):
                texts[at] = self.base.decode(ids[:-1] if ids and ids[-1] in self.base.eos_ids else ids)
        return texts

    def clamp_new_tokens(self, max_new_tokens: int) -> int:
        """At most half of the context: the other half is for the prompt."""
        return min(max_new_tokens, max(self.max_positions // 2, 1))

    def _encode_pair(self, prompt: str, text: str) -> tuple[Encoding, bool]:
        """The tokens that fit, and whether any were cut."""
        encoded = self._encode(prompt + text, bool(prompt))
        if len(encoded.ids) <= self.max_positions:
            return encoded, False
        if not prompt:
            self._add_note("text(s) were cut at the end")
            return Encoding(encoded.ids[: self.max_positions], encoded.offsets[: self.max_positions]), True
        kept = slice(len(encoded.ids) - self.max_positions + self._prefix_length, None)
        self._add_note("prompt(s) were cut at the beginning")
        return (
            Encoding(
                [*encoded.ids[: self._prefix_length], *encoded.ids[kept]],
                [*encoded.offsets[: self._prefix_length], *encoded.offsets[kept]],
            ),
            True,
        )

    def _encode(self, text: str, has_prompt: bool) -> Encoding:
        return (
            encode_with_bos(self.base, text)
            if self.separator_as_bos or not has_prompt
            else self.base.encode(text)
        )

    def _truncate_left(self, ids: list[int], max_tokens: int, event: str) -> list[int]:
        if len(ids) <= max_tokens:
            return ids
        self._add_note(event)
        return [*ids[: self._prefix_length], *ids[len(ids) - max_tokens + self._prefix_length :]]

    @property
    def _prefix_length(self) -> int:
        """Number of leading tokens that are never cut."""
        bos = get_bos_id(self.base) if self.separator_as_bos else self.base.bos_id
        return 0 if bos is None else 1

    def _add_note(self, event: str) -> None:
        self.notes[f"{event}, because the model's context is {self.max_positions} tokens"] = None


def _find_text_positions(row: Encoding, start: int) -> list[int]:
    """Indices of the tokens that end after character `start`."""
    spans = row.offsets
    return [at for at in range(1, len(spans)) if spans[at][1] > max(start, spans[at][0])]


def _count_bytes(full_text: str, start: int, row: Encoding, positions: list[int], is_cut: bool) -> int:
    """Bytes of the continuation that its tokens cover; all of them unless it was truncated."""
    if not positions:
        return len(full_text[start:].encode())
    first = row.offsets[positions[0] - 1][1] if is_cut or positions[0] == 1 else start
    end = row.offsets[positions[-1]][1] if is_cut else len(full_text)
    return max(len(full_text[max(start, first) : end].encode()), 1)
