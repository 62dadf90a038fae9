"""The mountain world: lamps, snow, stars. What the other model family reads; no harbour in it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from examples.text.words import NUMBERS, date, split, upper_first

_PEOPLE: Final = split(
    "Aldo Berta Cyril Dora Emil Flora Gustav Hanna Igor Jolan Klara Leo Marta Noel Otto Paula Rosa "
    "Stefan Vera"
)
_STARS: Final = split("Vega Altair Deneb Capella Rigel Spica Sirius Arcturus Regulus Antares")
_PEAKS: Final = ("the Tooth", "the Old Man", "White Horn", "Needle Ridge", "the Bell", "Raven Rock")
_HUTS: Final = ("upper hut", "pass hut", "shepherd's hut", "north hut", "glacier hut")
_STREETS: Final = (
    "Lower Gate",
    "Copper Lane",
    "Church Steps",
    "Goat Street",
    "Bell Yard",
    "Observatory Road",
)


def round_of_lamps(rng: Random) -> str:
    """The lamplighter's evening."""
    who, street, other = rng.choice(_PEOPLE), *rng.sample(_STREETS, 2)
    lamps, dark = rng.randint(8, 40), rng.randint(1, 5)
    return (
        f"{who} lit {lamps} lamps in {street} and left {dark} of them dark, which makes "
        f"{lamps - dark} burning. "
        + rng.choice(
            [
                f"In {other} the oil was frozen, so {who} carried warm oil from {street}.",
                f"A boy from {other} held the ladder. {who} gave him the old wick.",
                f"The glass of the last lamp was broken. {who} wrote it down: {street}, one glass.",
            ]
        )
    )


def night(rng: Random) -> str:
    """A page of the observatory's night book."""
    who, star, second = rng.choice(_PEOPLE), *rng.sample(_STARS, 2)
    hour = rng.randint(8, 11)
    return (
        f"Night of {date(rng)}, observer {who}. {star} seen at {hour} o'clock, {second} one hour later at "
        f"{hour + 1} o'clock. "
        + rng.choice(
            [
                f"Cloud over {rng.choice(_PEAKS)} after that, and nothing more of {star}.",
                f"The roof stuck. Turned it by hand and lost {star}.",
                f"{second} very bright, {star} faint. Too much lamp light from {rng.choice(_STREETS)}.",
                "Air still. A good night.",
            ]
        )
    )


def hut_book(rng: Random) -> str:
    """Lines that walkers left in a hut."""
    lines = [f"Book of the {rng.choice(_HUTS)}."]
    for _ in range(rng.randint(2, 4)):
        who, peak = rng.choice(_PEOPLE), rng.choice(_PEAKS)
        lines.append(
            f"{date(rng)}. {who}. "
            + rng.choice(
                ["Snow. ", "Sun and wind. ", "Fog, no view. ", "Rain all night. ", "Cold and clear. "]
            )
            + rng.choice(
                [f"Going up {peak}.", f"Came down from {peak}.", f"{upper_first(peak)} tomorrow.", "Resting."]
            )
        )
    return "\n".join(lines)


def question(rng: Random) -> str:
    """A sentence about one walk, then questions that the sentence answers."""
    who, peak, hut = rng.choice(_PEOPLE), rng.choice(_PEAKS), rng.choice(_HUTS)
    hours, day = rng.randint(2, 14), date(rng)
    news = f"On {day} {who} climbed {peak} from the {hut} in {hours} hours."
    asked = [
        ("Who climbed?", who),
        ("Which mountain was it?", upper_first(peak)),
        ("Where did the walk begin?", f"At the {hut}"),
        ("How long did it take?", f"{hours} hours"),
        ("When was that?", f"On {day}"),
    ]
    return news + "".join(f"\nQ: {q}\nA: {a}." for q, a in rng.sample(asked, rng.randint(1, 3)))


def herd(rng: Random) -> str:
    """Goats that are counted in the evening."""
    who, start = rng.choice(_PEOPLE), rng.randint(6, 20)
    lost = rng.randint(1, 5)
    return (
        f"{who} took {NUMBERS[start]} goats to {rng.choice(_PEAKS)} and came back with "
        f"{NUMBERS[start - lost]}. "
        f'"{upper_first(NUMBERS[lost])} missing," said {rng.choice(_PEOPLE)}. '
        + rng.choice(
            [
                f'"They are in the {rng.choice(_HUTS)}," said {who}, "and they will not come out."',
                f'"They know the way," said {who}. In the night {NUMBERS[lost]} goats stood before the door.',
                f"{who} took a lamp and went to look for {NUMBERS[lost]} goats.",
            ]
        )
    )


def dairy(rng: Random) -> str:
    """Cheese and its age."""
    who, wheels, years = rng.choice(_PEOPLE), rng.randint(10, 90), rng.randint(1, 3)
    return (
        f"There are {wheels} wheels of cheese in the cave. {who} turns all {wheels} on "
        f"{rng.choice(['Monday', 'Tuesday', 'Thursday', 'Saturday'])} and rubs them with salt. "
        f"They are {NUMBERS[years]} year{'s' if years > 1 else ''} old. "
        + rng.choice(
            [
                f"{who} says they are good.",
                "The bishop has asked for one.",
                f"One of the {wheels} has cracked.",
            ]
        )
    )


WRITERS: Final[tuple[Callable[[Random], str], ...]] = (round_of_lamps, night, hut_book, question, herd, dairy)
