"""What a running model makes of texts: how many nats a continuation costs it, and what it writes by itself.

A text begins with what the model's texts begin with: its BOS, or where the tokenizer puts none the token that
divides documents. A prompt and its continuation are cut into tokens together, as the model would meet them;
the tokens that end inside the continuation are its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models import Encoded, TextModel
from workers.training.sampling import context, opened, opening, write
from workers.training.written import chosen, right_padded

_LOGITS = {"cpu": 2**26, "cuda": 2**28}  # numbers in one pass's logits
_ROWS = 32  # side by side
_SHORTEST = 16  # tokens of one pass over a text whose logits do not fit at once


@dataclass(frozen=True, slots=True)
class Continued:
    """−log P of a text behind its prompt, in nats, over so many of its bytes and tokens. `greedy`: each of
    these tokens was the likeliest one."""

    nats: float
    bytes: int
    tokens: int
    greedy: bool

    @property
    def per_byte(self) -> float:
        """Nats per byte, which models with other tokenizers share."""
        return self.nats / max(self.bytes, 1)

    @property
    def per_token(self) -> float:
        """Nats per token of this model."""
        return self.nats / max(self.tokens, 1)


class Reader:
    """One model at its present state. `notes`: what had to be cut. Without `divided` nothing but a BOS stands
    in front of a prompt, as lm-evaluation-harness has it."""

    def __init__(self, base: TextModel, *, divided: bool = True) -> None:
        self.base = base
        self.divided = divided
        self.context = context(base)
        self.notes: dict[str, None] = {}

    def continued(self, pairs: Sequence[tuple[str, str]]) -> list[Continued]:
        """(prompt, text) → what the text costs. Without a prompt a text too long for the model loses its end,
        behind one it is the prompt that loses its beginning."""
        read = [self._read(prompt, text) for prompt, text in pairs]
        costs = self.log_probabilities([row.ids for row, _ in read])
        found = []
        for (prompt, text), (row, cut), logs in zip(pairs, read, costs, strict=True):
            begin = len(prompt)
            own = [at for at in range(1, len(row.ids)) if row.offsets[at][1] > max(begin, row.offsets[at][0])]
            nats = -math.fsum(logs[at - 1][0] for at in own) if own else math.inf
            greedy = bool(own) and all(logs[at - 1][1] for at in own)
            found.append(Continued(nats, _bytes(prompt + text, begin, row, own, cut), len(own), greedy))
        return found

    def written(self, prompts: Sequence[str], most: int) -> list[str]:
        """What the model writes behind each prompt, the likeliest token at a time, until it ends the text or
        has written `most` tokens."""
        most = self.longest(most)
        rows = []
        for prompt in prompts:
            ids = self._encoded(prompt, bool(prompt)).ids
            rows.append(self._shortened(ids, self.context - most, "prompt(s) lost their beginning"))
        found: list[str] = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda at: (-len(rows[at]), at))
        for start in range(0, len(order), _ROWS):
            places = order[start : start + _ROWS]
            wrote = write(self.base, [rows[at] for at in places], most, temperature=0.0, top_p=1.0, seed=0)
            for at, ids in zip(places, wrote, strict=True):
                found[at] = self.base.decode(ids[:-1] if ids and ids[-1] in self.base.eos else ids)
        return found

    def longest(self, most: int) -> int:
        """How many of so many tokens an answer can have: half of the context is the prompt's."""
        return min(most, max(self.context // 2, 1))

    def _read(self, prompt: str, text: str) -> tuple[Encoded, bool]:
        """The tokens that fit, and whether any had to go."""
        whole = self._encoded(prompt + text, bool(prompt))
        if len(whole.ids) <= self.context:
            return whole, False
        if not prompt:
            self._note("text(s) lost their end")
            return Encoded(whole.ids[: self.context], whole.offsets[: self.context]), True
        kept = slice(len(whole.ids) - self.context + self._head, None)
        self._note("prompt(s) lost their beginning")
        return (
            Encoded(
                [*whole.ids[: self._head], *whole.ids[kept]],
                [*whole.offsets[: self._head], *whole.offsets[kept]],
            ),
            True,
        )

    def _encoded(self, text: str, prompted: bool) -> Encoded:
        return opened(self.base, text) if self.divided or not prompted else self.base.encode(text)

    def _shortened(self, ids: list[int], most: int, what: str) -> list[int]:
        if len(ids) <= most:
            return ids
        self._note(what)
        return [*ids[: self._head], *ids[len(ids) - most + self._head :]]

    @property
    def _head(self) -> int:
        """Tokens in front that stay whatever is cut."""
        first = opening(self.base) if self.divided else self.base.bos
        return 0 if first is None else 1

    def _note(self, what: str) -> None:
        self.notes[f"{what}, because the model reads {self.context} tokens"] = None

    def log_probabilities(self, rows: Sequence[list[int]]) -> list[list[tuple[float, bool]]]:
        """Of each id of each row but its first: log P given those before it, and was it the likeliest?"""
        found: list[list[tuple[float, bool]]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda at: (-len(rows[at]), at))
        for places in self._batches(order, rows):
            ids = right_padded([rows[at] for at in places]).to(self.base.device)
            logs, likeliest = self._chosen(ids)
            for at, row, best in zip(places, logs.tolist(), likeliest.tolist(), strict=True):
                found[at] = list(zip(row, best, strict=True))[: len(rows[at]) - 1]
        return found

    def _batches(self, order: Sequence[int], rows: Sequence[list[int]]) -> Iterator[Sequence[int]]:
        start = 0
        while start < len(order):
            size = min(_ROWS, max(1, self._room() // len(rows[order[start]])))
            yield order[start : start + size]
            start += size

    def _room(self) -> int:
        """Tokens whose logits fit in one pass."""
        numbers = _LOGITS.get(self.base.device.type, _LOGITS["cpu"])
        return max(_SHORTEST, numbers // int(self.base.model.config.vocab_size))

    @torch.no_grad()
    def _chosen(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, tokens) ids → of each but the first its log P and whether it was the likeliest. A single row
        whose logits do not fit goes through in parts, over the keys and values of what stands before."""
        inputs, wanted = ids[:, :-1], ids[:, 1:]
        size = max(self._room() // len(ids), 1)
        if inputs.shape[1] <= size:
            if not inputs.shape[1]:
                return wanted.float(), wanted.bool()
            logits = self.base.model(input_ids=inputs, use_cache=False).logits
            return chosen(logits, wanted), logits.argmax(-1) == wanted
        logs, likeliest, past = [], [], None
        for start in range(0, inputs.shape[1], size):
            part = slice(start, start + size)
            out = self.base.model(input_ids=inputs[:, part], past_key_values=past, use_cache=True)
            past = out.past_key_values
            logs.append(chosen(out.logits, wanted[:, part]))
            likeliest.append(out.logits.argmax(-1) == wanted[:, part])
        return torch.cat(logs, 1), torch.cat(likeliest, 1)


def _bytes(whole: str, begin: int, row: Encoded, own: list[int], cut: bool) -> int:
    """Bytes of the continuation that its tokens stand for; all of them unless something was cut off."""
    if not own:
        return len(whole[begin:].encode())
    first = row.offsets[own[0] - 1][1] if cut or own[0] == 1 else begin
    end = row.offsets[own[-1]][1] if cut else len(whole)
    return max(len(whole[max(begin, first) : end].encode()), 1)
