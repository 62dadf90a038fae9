"""Three small skills that no base model has, for adapters on real weights. Generated, the same for a seed.

    harbour-log   lines of an invented log: pure language, learnt and measured on every token
    orders        a sentence → a record in a house form; the adapter learns whole lines, so it can write them
    desk          a message → one of six desks; the adapter learns the answers alone

Held-out examples come from another seed, and `orders` and `desk` hold names and phrasings back for them as
well. Each skill is measured in nats and in accuracy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from support.domain_corpus import page

_BATCH = 16
TRAINING_SEED, HELD_OUT_SEED, PROMPTS_SEED = 20, 21, 22


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` may be empty; `choices`: what the answer was chosen from, if from a few."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids with a BOS in front; `learnt`: of ids[1:], which are trained on and measured."""

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """`examples(seed, count)` are made anew; `whole`: prompts are learnt and measured too; `tokens`: of one
    training sequence where examples are cut from running text."""

    name: str
    examples: Callable[[int, int], list[Example]]
    held_out: int
    whole: bool = False
    tokens: int | None = None

    def rows(self, tokenizer: Any, seed: int, count: int, *, scored: bool = False) -> list[Row]:
        """As one model reads them, to learn from. Examples with a prompt end in the model's EOS.

        `scored`: of these the answers alone count, without the EOS, which would weigh more than what is said.
        """
        if self.tokens is not None:
            return _chunks(tokenizer, "".join(e.answer for e in self.examples(seed, count)), self.tokens)
        whole = self.whole and not scored
        return [_row(tokenizer, e, whole, not scored) for e in self.examples(seed, count)]

    def prompts(self, count: int) -> tuple[str, ...] | None:
        """Unlabelled inputs to distil with, of a third seed; None where the source can write from nothing."""
        return None if self.whole else tuple(e.prompt for e in self.examples(PROMPTS_SEED, count))


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry an example. `nats`: mean per measured token. `right`: the share of measured tokens that are
    the likeliest (running text), or 1 when the answer is what greedy decoding gives (records) or the
    likeliest choice (desks)."""

    nats: Tensor
    right: Tensor


@torch.no_grad()
def score(model: Any, tokenizer: Any, task: Task, count: int | None = None) -> Scores:
    """Held-out scores of a model as it is, adapter included."""
    model.eval()
    size = count or task.held_out
    rows = task.rows(tokenizer, HELD_OUT_SEED, size, scored=True)
    nats, hits = _measured(model, rows)
    if task.tokens is not None:
        return Scores(nats, torch.stack([hit.float().mean() for hit in hits]))
    examples = task.examples(HELD_OUT_SEED, size)
    if not examples[0].choices:
        return Scores(nats, torch.tensor([float(hit.all()) for hit in hits]))
    choices = examples[0].choices
    firsts = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in choices]
    assert len(set(firsts)) == len(choices)  # so that the first token tells them apart
    likeliest = _firsts(model, rows)[:, firsts].argmax(-1).tolist()
    right = [choices[at] == e.answer for at, e in zip(likeliest, examples, strict=True)]
    return Scores(nats, torch.tensor(right).float())


def _firsts(model: Any, rows: Sequence[Row]) -> Tensor:
    """Logits (rows, vocabulary) of each row's first learnt token."""
    found = []
    for start in range(0, len(rows), _BATCH):
        ids, learnt = padded(rows[start : start + _BATCH], model.device)
        found.append(logits_at(model, ids, learnt & (learnt.cumsum(1) == 1)).cpu())
    return torch.cat(found)


def padded(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (n, longest) padded behind, and which of ids[:, 1:] are learnt, bool; both on `device`."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    learnt = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        learnt[at, : len(row.learnt)] = torch.tensor(row.learnt)
    return ids.to(device), learnt.to(device)


def _measured(model: Any, rows: Sequence[Row]) -> tuple[Tensor, list[Tensor]]:
    """Mean nats of the measured tokens of each row, and for each of these whether it is the likeliest."""
    nats: list[Tensor] = []
    hits: list[Tensor] = []
    for start in range(0, len(rows), _BATCH):
        ids, learnt = padded(rows[start : start + _BATCH], model.device)
        wanted = ids[:, 1:][learnt]
        logits = logits_at(model, ids, learnt).float()
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").cpu()
        sizes = learnt.sum(1).tolist()
        nats += [part.mean() for part in losses.split(sizes)]
        hits += list((logits.argmax(-1) == wanted).cpu().split(sizes))
    return torch.stack(nats), hits


def logits_at(model: Any, ids: Tensor, measured: Tensor) -> Tensor:
    """Logits (count, vocabulary) of what foretells the measured ones of ids[:, 1:], and no others."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    where = torch.cat([measured, measured.new_zeros(len(ids), 1)], dim=1)
    handle = plain.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][where],))
    try:
        logits: Tensor = model(input_ids=ids).logits
    finally:
        handle.remove()
    return logits


def _row(tokenizer: Any, example: Example, whole: bool, ends: bool) -> Row:
    """Prompt and answer are cut into tokens apart, so that the answer begins with a token of its own."""
    before = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    behind = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
    behind = [*behind, *[tokenizer.eos_token_id] * ends]
    learnt = [*[whole] * len(before), *[True] * len(behind)]
    return Row((tokenizer.bos_token_id, *before, *behind), tuple(learnt))


def _chunks(tokenizer: Any, text: str, tokens: int) -> list[Row]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    body = tokens - 1
    cuts = [ids[at : at + body] for at in range(0, len(ids) - body + 1, body)]
    return [Row((tokenizer.bos_token_id, *cut), (True,) * body) for cut in cuts]


def _log(seed: int, count: int) -> list[Example]:
    return [Example("", page(seed, count))]


_WHO = ("Mira", "Tobias", "Wen", "Agathe", "Olu", "Perrin", "Salka", "Bram", "Ines", "Joss", "Kerttu", "Dov")
_UNITS = ("crates", "sacks", "barrels", "bales", "reams", "coils")
_WARES = ("barley", "tin", "rope", "paper", "salt", "wool", "chalk", "resin", "oats", "felt", "copper", "wax")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_ASKS = (
    "{who} wants {n} {unit} of {ware} by {day}.",
    "Please send {n} {unit} of {ware} to {who} before {day}.",
    "By {day}, {who} needs {n} {unit} of {ware}.",
    "{n} {unit} of {ware} for {who}, no later than {day}.",
    "Could {who} have {n} {unit} of {ware} on {day}?",
)


def _orders(seed: int, count: int) -> list[Example]:
    """Names and wares at the end of their lists are in held-out examples alone."""
    rng = random.Random(f"orders {seed}")
    fresh = slice(None) if seed == HELD_OUT_SEED else slice(-3)
    found = []
    for _ in range(count):
        who, ware = rng.choice(_WHO[fresh]), rng.choice(_WARES[fresh])
        n, unit, day = rng.randint(2, 99), rng.choice(_UNITS), rng.choice(_DAYS)
        text = rng.choice(_ASKS).format(who=who, n=n, unit=unit, ware=ware, day=day)
        found.append(Example(f"Order: {text}\nRecord:", f" {day[:3]} | {ware} {n} {unit[:-1]} -> {who};"))
    return found


_DESKS: dict[str, tuple[str, ...]] = {
    "light": ("lamp", "lantern", "switch", "fuse", "socket", "bulb", "generator", "cable"),
    "water": ("pipe", "tap", "drain", "leak", "boiler", "basin", "sewer", "valve"),
    "money": ("invoice", "payment", "refund", "bill", "receipt", "fee", "deposit", "tax"),
    "post": ("parcel", "letter", "courier", "envelope", "stamp", "delivery", "mailbag", "package"),
    "guard": ("lock", "key", "gate", "alarm", "watchman", "badge", "fence", "camera"),
    "food": ("soup", "bread", "kitchen", "oven", "menu", "coffee", "plate", "cook"),
}
_PLACES = ("on pier four", "in the west hall", "at the depot", "behind the office", "on the second floor")
_SAYS = (
    "The {thing} {place} needs attention.",
    "There is a problem with the {thing} {place}.",
    "Somebody should look at the {thing} {place}.",
    "Nobody has dealt with the {thing} {place} since last week.",
)


def _desk(seed: int, count: int) -> list[Example]:
    """The last two things of every desk are in held-out examples alone."""
    rng = random.Random(f"desk {seed}")
    fresh = slice(None) if seed == HELD_OUT_SEED else slice(-2)
    codes = tuple(f" {code}" for code in _DESKS)
    found = []
    for _ in range(count):
        code = rng.choice(list(_DESKS))
        text = rng.choice(_SAYS).format(thing=rng.choice(_DESKS[code][fresh]), place=rng.choice(_PLACES))
        found.append(Example(f"Message: {text}\nDesk:", f" {code}", codes))
    return found


HARBOUR_LOG = Task("harbour-log", _log, held_out=56, whole=True, tokens=96)
ORDERS = Task("orders", _orders, held_out=80, whole=True)
DESK = Task("desk", _desk, held_out=120)
TASKS = {task.name: task for task in (HARBOUR_LOG, ORDERS, DESK)}
