"""What a running model makes of texts: how many nats a continuation costs it, and what it writes by itself.

A text begins with what the model's texts begin with: its BOS, or where the tokenizer puts none the token that
divides documents. A prompt and its continuation are cut into tokens together, as the model would meet them;
the tokens that end inside the continuation are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workers.foretold import foretold
from workers.models import Encoded, TextModel
from workers.training.sampling import context, opened, opening, write

_ROWS = 32  # side by side


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
        of_text = [_own(row, len(prompt)) for (row, _), (prompt, _) in zip(read, pairs, strict=True)]
        firsts = [own[0] if own else len(row.ids) for own, (row, _) in zip(of_text, read, strict=True)]
        costs = foretold(self.base, [row.ids for row, _ in read], firsts)
        found = []
        for (prompt, text), (row, cut), own, logs in zip(pairs, read, of_text, costs, strict=True):
            mine = [logs[at - own[0]] for at in own]
            nats = -math.fsum(log for log, _ in mine) if own else math.inf
            greedy = bool(own) and all(likeliest for _, likeliest in mine)
            size = _bytes(prompt + text, len(prompt), row, own, cut)
            found.append(Continued(nats, size, len(own), greedy))
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


def _own(row: Encoded, begin: int) -> list[int]:
    """Places of the tokens that end behind so many characters."""
    spans = row.offsets
    return [at for at in range(1, len(spans)) if spans[at][1] > max(begin, spans[at][0])]


def _bytes(whole: str, begin: int, row: Encoded, own: list[int], cut: bool) -> int:
    """Bytes of the continuation that its tokens stand for; all of them unless something was cut off."""
    if not own:
        return len(whole[begin:].encode())
    first = row.offsets[own[0] - 1][1] if cut or own[0] == 1 else begin
    end = row.offsets[own[-1]][1] if cut else len(whole)
    return max(len(whole[max(begin, first) : end].encode()), 1)
