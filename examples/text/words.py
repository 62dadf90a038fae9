"""Word lists of the invented worlds, and small helpers that several generators share."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final


def split(text: str) -> tuple[str, ...]:
    """The words of `text`, which keeps a list of them readable in the source."""
    return tuple(text.split())


MONTHS: Final = split("January February March April May June July August September October November December")
FIRST: Final = split(
    "Ada Bram Cora Dirk Elin Finn Greta Hugo Ines Jonas Kara Lars Mina Nils Olga Piet Runa Sven Tilda Ulf"
)
LAST: Final = split(
    "Holm Brandt Vane Marsh Teller Reed Stone Fisker Lund Carver Moss Pike Harrow Quill Thorn Wick"
)
SHIPS: Final = split(
    "Gannet Petrel Heron Dolphin Seahorse Tern Osprey Otter Puffin Curlew Plover Kestrel Swan Lark"
)
SHIP_ADJECTIVES: Final = split("Merry Grey Patient Golden Silver Young Old Brave Quiet Northern")
CARGO: Final = split("salt wool timber wine grain tar hemp iron fish coal cloth oil tea copper amber glass")
PORTS: Final = split("Saltmere Eastwick Norhaven Tarnby Gullport Sandoy Kelmouth Ravnes Ostby Whitcliff")
WINDS: Final = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
NUMBERS: Final = split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)


def person(rng: Random) -> str:
    """A full name, such as "Ada Holm"."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def ship(rng: Random) -> str:
    """A ship's name, such as "Merry Gannet"; some have no adjective."""
    name = rng.choice(SHIPS)
    return f"{rng.choice(SHIP_ADJECTIVES)} {name}" if rng.random() < 0.6 else name


def date(rng: Random) -> str:
    """A day of the year, such as "12 March"."""
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def join(items: Sequence[str]) -> str:
    """An English list: "salt, wool and tar"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def upper_first(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[:1].upper() + text[1:]
