"""The country behind the harbour: barges, locks, a railway. What the "new release" reads on top of the old
text."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from examples.text.words import CARGO, NUMBERS, date, join, person, split, upper_first

_TOWNS: Final = split("Underholt Millbeck Stonelock Ashbridge Rydal Greenford Highmoor Barrowby")
_BARGES: Final = split("Perch Willow Bramble Dragonfly Teasel Mallard Hazel Sedge Nettle Rook")
_ENGINES: Final = split("Patience Prudence Courage Fortune Harmony Justice")
_FREIGHT: Final = ("flour", "bricks", "slate", "apples", "barley", "cheese", "paper", *CARGO[:6])


def passage(rng: Random) -> str:
    """A barge goes through a lock."""
    barge, master, lock = rng.choice(_BARGES), person(rng), rng.choice(_TOWNS)
    goods, toll = rng.sample(_FREIGHT, rng.randint(1, 2)), rng.randint(1, 12)
    return rng.choice(
        [
            f"The barge {barge} passed the lock at {lock} with {join(goods)}. {master}, who steered "
            f"her, paid {toll} "
            f"marks and asked whether the water was high above {lock}.",
            f"At {lock} the keeper let the {barge} up before breakfast. She was deep with {goods[0]}. "
            f'"{upper_first(goods[0])} again," said the keeper. "Always {goods[0]}," said {master}.',
            f"{master} and the {barge} waited {rng.choice(NUMBERS[2:9])} hours below {lock}, since "
            f"the gate would not "
            f"close. Then they went up, sold the {goods[0]} in {rng.choice(_TOWNS)} and came back empty.",
        ]
    )


def timetable(rng: Random) -> str:
    """Trains of one line; the times rise from stop to stop."""
    engine, stops = rng.choice(_ENGINES), rng.sample(_TOWNS, rng.randint(3, 5))
    minute = rng.randint(5 * 60, 15 * 60)
    lines = [f"Train from {stops[0]} to {stops[-1]}, engine {engine}:"]
    for stop in stops:
        lines.append(f"{stop} {minute // 60}.{minute % 60:02d}")
        minute += rng.randint(9, 55)
    return "\n".join(lines)


def telegram(rng: Random) -> str:
    """Few words, no commas."""
    to, sender, goods = person(rng), person(rng), rng.choice(_FREIGHT)
    body = rng.choice(
        [
            f"{goods} at {rng.randint(3, 50)} stop buy all the {goods} you can stop",
            f"train late stop {goods} wet stop send {rng.choice(NUMBERS[2:12])} carts to "
            f"{rng.choice(_TOWNS)} stop",
            f"canal closed stop sending {goods} by train stop meet {rng.choice(_ENGINES)} on "
            f"{date(rng)} stop",
        ]
    )
    return f"Telegram to {to}, {rng.choice(_TOWNS)}: {body} {sender.split()[1]}"


def market(rng: Random) -> str:
    """Prices of one market day, with what has changed."""
    town, goods = rng.choice(_TOWNS), rng.sample(_FREIGHT, 3)
    price = rng.randint(4, 40)
    return (
        f"Market at {town}, {date(rng)}. {upper_first(goods[0])} {price}, {goods[1]} {rng.randint(4, 40)}, "
        f"{goods[2]} {rng.randint(4, 40)}. "
        + rng.choice(
            [
                f"A week ago {goods[0]} was {price + rng.randint(1, 9)}, so {goods[0]} has fallen.",
                f"A week ago {goods[0]} was {max(1, price - rng.randint(1, 3))}, so {goods[0]} has risen.",
                f"Little {goods[1]} was sold, and no {goods[2]} at all after noon.",
            ]
        )
    )


def question(rng: Random) -> str:
    """One line of news from inland, then questions that the line answers."""
    barge, master, goods = rng.choice(_BARGES), person(rng), rng.choice(_FREIGHT)
    start, end, toll = *rng.sample(_TOWNS, 2), rng.randint(1, 40)
    news = f"{master} took the {barge} from {start} to {end} with {goods} and paid {toll} marks."
    asked = [
        ("What was on board?", upper_first(goods)),
        ("Who steered?", master),
        ("Which barge was it?", f"The {barge}"),
        ("Where did she start?", start),
        ("Where did she go?", end),
        ("What was paid?", f"{toll} marks"),
    ]
    return news + "".join(f"\nQuestion: {q}\nAnswer: {a}." for q, a in rng.sample(asked, rng.randint(1, 4)))


def survey(rng: Random) -> str:
    """The surveyor's notebook."""
    a, b, c = rng.sample(_TOWNS, 3)
    first, second = rng.randint(3, 40), rng.randint(3, 40)
    return (
        f"Survey. From {a} to {b} is {first} miles. From {b} to {c} is {second} miles. "
        f"So from {a} to {c} by {b} is {first + second} miles. "
        + rng.choice(
            [f"The road at {b} is bad.", f"A bridge is wanted at {c}.", f"From the hill one sees {a}."]
        )
    )


WRITERS: Final[tuple[Callable[[Random], str], ...]] = (passage, timetable, telegram, market, question, survey)
