"""The skill: a question about the harbour register in, one prepared SQL statement out, with a `?` for each
value. Statements are split for good into a training and a held-out side by the hash of their text, so that no
statement of the held-out side is ever trained on, whatever the seed and the wording of its question."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal

from examples.text.words import CARGO, MONTHS, PORTS, person

Split = Literal["train", "held-out"]
_HELD_OUT_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Example:
    """What the model is given and what it should write next."""

    prompt: str
    answer: str


# How one asks, and the column or aggregate that answers.
_QUESTION_FORMS: Final = (
    ("Which ships", "ship"),
    ("Which captains", "captain"),
    ("How many ships", "COUNT(*)"),
    ("From which ports did the ships come that", "port"),
)


def _generate_condition(rng: Random, column: str) -> tuple[str, str]:
    """Words and SQL for one filter on `column`."""
    if column == "cargo":
        goods = rng.choice(CARGO)
        return rng.choice([f"carried {goods}", f"brought {goods}"]), "cargo = ?"
    if column == "port":
        port = rng.choice(PORTS)
        return rng.choice([f"sailed from {port}", f"came from {port}"]), "port = ?"
    if column == "month":
        month = rng.choice(MONTHS)
        return rng.choice([f"came in {month}", f"made fast in {month}"]), "month = ?"
    if column == "captain":
        name = person(rng)
        return f"had {name} as captain", "captain = ?"
    fee = rng.randint(5, 99)
    more = rng.random() < 0.5
    return f"paid {'more' if more else 'less'} than {fee} marks", f"fee {'>' if more else '<'} ?"


def generate_example(rng: Random) -> Example:
    """One question with its query: a column, one to three filters, sometimes an order."""
    ask, column = rng.choice(_QUESTION_FORMS)
    filters = [name for name in ("cargo", "port", "month", "captain", "fee") if name != column]
    columns = rng.sample(filters, rng.choice([1, 2, 2, 3]))
    words, conditions = zip(*(_generate_condition(rng, name) for name in columns), strict=True)
    text = f"{ask} {' and '.join(words)}"
    sql = f"SELECT {column} FROM arrivals WHERE {' AND '.join(conditions)}"
    if column in ("ship", "captain") and rng.random() < 0.3:
        text, sql = f"{text}, dearest first", f"{sql} ORDER BY fee DESC"
    return Example(prompt=f"Question: {text}?\nSQL:", answer=f" {sql};")


def assign_split(answer: str) -> Split:
    """The side that a statement is on, with every question that it answers."""
    digest = hashlib.sha256(answer.encode()).digest()
    return "held-out" if int.from_bytes(digest[:4]) < _HELD_OUT_SHARE * 2**32 else "train"


def generate_examples(split: Split, count: int, seed: int) -> list[Example]:
    """`count` different questions of one side."""
    rng, by_prompt = Random(seed), dict[str, Example]()
    while len(by_prompt) < count:
        new = generate_example(rng)
        if assign_split(new.answer) == split:
            by_prompt.setdefault(new.prompt, new)
    return list(by_prompt.values())


def write_task(path: Path, items: list[Example]) -> None:
    """One JSON object per line, keys `prompt` and `answer`."""
    path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items), encoding="utf-8")


def read_task(path: Path) -> list[Example]:
    """The inverse of `write_task`. Raises ValueError that names the line when one is not such an object."""
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            raw = json.loads(line)
        except json.JSONDecodeError:
            raw = None
        if not isinstance(raw, dict) or not all(
            isinstance(raw.get(key), str) for key in ("prompt", "answer")
        ):
            raise ValueError(
                f"{path.name}, line {number}: expected an object with the texts prompt and answer"
            )
        items.append(Example(prompt=raw["prompt"], answer=raw["answer"]))
    return items
