"""The harbour world: documents that name the same ship, captain and cargo again and again, so that a small
model learns to look back. Every function writes one document from a seeded generator."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from examples.text.words import CARGO, MONTHS, NUMBERS, PORTS, WINDS, date, join, person, ship, upper_first


def arrival(rng: Random) -> str:
    """A ship comes in, pays and leaves."""
    name, captain, port = ship(rng), person(rng), rng.choice(PORTS[1:])
    goods = rng.sample(CARGO, rng.randint(1, 3))
    fee, days = rng.randint(5, 99), rng.randint(2, 20)
    she = rng.choice([f"The {name}", "She"])
    opening = rng.choice(
        [
            f"The {name} came in from {port} on the morning tide with {join(goods)} in her hold.",
            f"On {date(rng)} the {name} of {port} made fast at the long quay. She carried {join(goods)}.",
            f"Before the bell had rung nine the {name} was alongside, {NUMBERS[min(days, 20)]} days "
            f"out of {port}, "
            f"loaded with {join(goods)}.",
        ]
    )
    middle = rng.choice(
        [
            f"Her captain, {captain}, went to the customs house and paid {fee} marks.",
            f"{captain}, her captain, said that {fee} marks was too much for {goods[0]}, and paid "
            f"{fee} marks.",
            f"The harbour master asked {captain} for {fee} marks and wrote {fee} in the book.",
        ]
    )
    end = rng.choice(
        [
            f"{she} left again with the next tide, bound for {rng.choice(PORTS)}.",
            f"The men began to land the {goods[0]} before noon, and by evening the {goods[0]} lay "
            f"in the shed.",
            f"{upper_first(goods[-1])} was dear that {rng.choice(['week', 'month', 'year'])}, "
            f"and {captain.split()[0]} was in good humour.",
            f"{she} lay there for {rng.randint(2, 9)} days, because the wind stayed in the "
            f"{rng.choice(WINDS)}.",
        ]
    )
    return f"{opening} {middle} {end}"


def ledger(rng: Random) -> str:
    """A page of the customs book; the sum is right."""
    lines, total = [], 0
    for goods in rng.sample(CARGO, rng.randint(2, 5)):
        fee = rng.randint(2, 40)
        total += fee
        lines.append(f"{goods}, {ship(rng)}, {fee} marks")
    return f"Ledger of {date(rng)}:\n" + "\n".join(lines) + f"\nsum {total} marks"


def log(rng: Random) -> str:
    """A few days of a ship's log."""
    name, wind = ship(rng), rng.randrange(len(WINDS))
    lines = [f"Log of the {name}, {rng.choice(PORTS)} to {rng.choice(PORTS)}."]
    for day in range(1, rng.randint(3, 6)):
        wind = (wind + rng.choice([-1, 0, 0, 1])) % len(WINDS)
        force = rng.choice(["light", "fresh", "strong", "hardly any", "a whole gale"])
        event = rng.choice(
            [
                "Mended the foresail.",
                f"Saw the {ship(rng)} standing to the {rng.choice(WINDS)}.",
                f"Ran {rng.choice(NUMBERS[3:13])} knots until dark.",
                f"{rng.choice(['Rain', 'Fog', 'Sun', 'Snow', 'Hail'])} all day.",
                "The cook is ill.",
                "Sounded, no bottom.",
            ]
        )
        lines.append(f"Day {day}. Wind {WINDS[wind]}, {force}. {event}")
    return "\n".join(lines)


def talk(rng: Random) -> str:
    """Two people speak on the quay about a ship and what she carries."""
    one, two = (person(rng).split()[0] for _ in range(2))
    name, goods, place = ship(rng), rng.choice(CARGO), rng.choice(PORTS)
    ask = rng.choice(
        [
            (f"Where does the {name} come from?", f"The {name} comes from {place}."),
            (f"What has the {name} brought?", f"She has brought {goods}, and nothing but {goods}."),
            (f"Is the {name} in yet?", f"No, the {name} lies outside and waits for the tide."),
            (f"Who will buy all that {goods}?", f"They will buy {goods} in {place} if nobody buys it here."),
            (
                f"How much is the {goods} now?",
                f"{upper_first(goods)} is at {rng.randint(2, 60)} marks in {place}.",
            ),
        ]
    )
    close = rng.choice(
        [
            f'"So it goes with {goods}," said {one}.',
            f'"I have never liked {place}," said {one}, and went home.',
            f'"Then I shall wait for her," said {one}.',
            f"{one} looked at the water and said nothing.",
        ]
    )
    return f'"{ask[0]}" asked {one}. "{ask[1][:-1]}," said {two}. {close}'


def letter(rng: Random) -> str:
    """A short letter from one port to another."""
    to, sender, name, goods = person(rng), person(rng), ship(rng), rng.choice(CARGO)
    return (
        f"{rng.choice(PORTS)}, {date(rng)}\nDear {to.split()[0]},\n"
        + rng.choice(
            [
                f"I send you {rng.randint(2, 30)} barrels of {goods} with the {name}. Please sell "
                f"the {goods} "
                f"before {rng.choice(MONTHS)}, since the price will fall.",
                f"the {name} has not come, and the {goods} has not come with her. If she is in "
                f"{rng.choice(PORTS)}, "
                f"tell her captain that I am waiting for my {goods}.",
                f"thank you for the {goods}. It came dry and whole in the {name}. I owe you "
                f"{rng.randint(3, 90)} marks "
                f"and a dinner.",
            ]
        )
        + f"\nYours, {sender}"
    )


def question(rng: Random) -> str:
    """One line of news, then questions that the line answers."""
    name, captain, goods = ship(rng), person(rng), rng.choice(CARGO)
    port, fee, month = rng.choice(PORTS), rng.randint(5, 99), rng.choice(MONTHS)
    news = f"In {month} the {name} under {captain} brought {goods} from {port} and paid {fee} marks."
    asked = [
        ("What did the ship bring?", upper_first(goods)),
        ("Who was her captain?", captain),
        ("Which ship was it?", f"The {name}"),
        ("Where did she come from?", port),
        ("How much did she pay?", f"{fee} marks"),
        ("In which month was that?", month),
    ]
    return news + "".join(f"\nQuestion: {q}\nAnswer: {a}." for q, a in rng.sample(asked, rng.randint(1, 4)))


_TRADES: Final = (
    ("cooper", "casks", "oak and iron", "beats the hoops tight"),
    ("rope maker", "rope", "hemp", "walks backwards all day"),
    ("sail maker", "sails", "canvas and twine", "sews with a leather palm"),
    ("smith", "anchors", "iron and coal", "works before sunrise"),
    ("chandler", "candles", "tallow", "sells everything else as well"),
    ("net maker", "nets", "string", "ties ten thousand knots a week"),
    ("boat builder", "boats", "larch and copper nails", "measures twice"),
    ("baker", "ship's bread", "flour and water", "bakes it until it is hard as wood"),
    ("carter", "no thing at all", "a horse and a cart", "knows every stone of the road"),
)


def trade(rng: Random) -> str:
    """What somebody in town does for a living."""
    job, makes, of, habit = rng.choice(_TRADES)
    who, where = (
        person(rng),
        rng.choice(["by the quay", "behind the church", "in Rope Lane", "near the old stair"]),
    )
    return rng.choice(
        [
            f"{who} is a {job} and lives {where}. A {job} makes {makes}. For this one needs {of}. "
            f"{who.split()[0]} {habit}.",
            f"The {job} {where} is called {who}. {who.split()[0]} makes {makes} out of {of}, and {habit}.",
        ]
    )


def weather(rng: Random) -> str:
    """The day's weather on the quay."""
    first, second = rng.sample(WINDS, 2)
    return (
        f"Weather for {date(rng)}. Wind from the {first}, turning {second} by "
        f"{rng.choice(['noon', 'evening'])}. "
        + rng.choice(
            ["Mist until nine. ", "Clear sky. ", "Rain later. ", "Snow on the hills. ", "High cloud. "]
        )
        + f"High water at {rng.randint(1, 11)} in the morning. "
        + rng.choice(
            [
                "Small boats should stay in.",
                "Good drying weather.",
                "A night for the fire.",
                "Nets may be wet.",
            ]
        )
    )


WRITERS: Final[tuple[Callable[[Random], str], ...]] = (
    arrival,
    ledger,
    log,
    talk,
    letter,
    question,
    trade,
    weather,
)
