"""The harbour office's paperwork: capitals, signs, fields and codes. It keeps the base models from knowing
nothing but prose, and makes them copy what stands a few lines above. There is no query language in it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from examples.text.words import CARGO, MONTHS, PORTS, WINDS, date, join, person, ship, split, upper_first

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SYLLABLES: Final = split(
    "ab al an ar ba be bo ca co cu da de di do el en er es fa fi ga go ha he hi in is ka ki la le "
    "li lo ma me mi "
    "mo na ne ni no ol om on or pa pe po qu ra re ri ro sa se si so ta te ti to ul um un us va ve "
    "vi wa we yo ze"
)
_NOTICES: Final = (
    "ALL SHIPS FROM THE {wind} WAIT AT THE BUOY WHERE THE PILOT CAN SEE THEM",
    "NO {cargo} ON THE QUAY AFTER DARK BY ORDER OF THE HARBOUR MASTER",
    "SELECT YOUR BERTH AND COUNT YOUR {cargo} BEFORE THE BELL",
    "MASTERS WHO COME FROM {port} REPORT AT THE OFFICE IN ORDER OF ARRIVAL",
    "{cargo} AND {other} FOR SALE BY THE OLD STAIR",
    "THE OFFICE IS SHUT IN {month} AND THE FEE IS DOUBLE IN {later}",
    "DO NOT COUNT ON THE TIDE",
    "THE SUM OF ALL FEES IS HUNG OUT BY THE DOOR WHERE ANYBODY MAY READ IT",
)


def notice(rng: Random) -> str:
    """A board in capitals, and sometimes what it means."""
    goods, other = rng.sample(CARGO, 2)
    month, later = rng.sample(MONTHS, 2)
    text = rng.choice(_NOTICES).format(
        wind=rng.choice(WINDS).upper(),
        cargo=goods.upper(),
        other=other.upper(),
        port=rng.choice(PORTS).upper(),
        month=month.upper(),
        later=later.upper(),
    )
    return f"NOTICE: {text}." + (f"\nIn small letters: {text.lower()}." if rng.random() < 0.5 else "")


def record(rng: Random) -> str:
    """News in prose and the same as fields; now and then only what was asked for."""
    name, captain, goods = ship(rng), person(rng), rng.choice(CARGO)
    port, month, fee = rng.choice(PORTS), rng.choice(MONTHS), rng.randint(5, 99)
    news = rng.choice(
        [
            f"The {name} came from {port} in {month} with {goods}. {captain} paid {fee} marks.",
            f"{captain} paid {fee} marks for {goods} from {port}; the {name} made fast in {month}.",
            f"In {month} {captain} brought {goods} from {port} in the {name}, and the fee was {fee} marks.",
        ]
    )
    fields = {"ship": name, "captain": captain, "cargo": goods, "port": port, "month": month}
    entries = [f"{key} = '{value}'" for key, value in fields.items()] + [f"fee = {fee}"]
    kept = rng.sample(entries, rng.randint(2, 6))
    return f"{news}\nRecord: {', '.join(kept)};"


def codes(rng: Random) -> str:
    """A signal book: three-letter codes, then some of them read out."""
    meanings = [*rng.sample(CARGO, 3), *rng.sample(PORTS, 2), person(rng), str(rng.randint(2, 99))]
    book = {"".join(rng.choices(_LETTERS, k=3)): word for word in rng.sample(meanings, rng.randint(3, 5))}
    lines = [f"{code} = {word};" for code, word in book.items()]
    asked = rng.choices(list(book), k=rng.randint(2, 5))
    return "Signals: " + " ".join(lines) + "".join(f"\n{code}: {book[code]}" for code in asked)


def sums(rng: Random) -> str:
    """Small sums and comparisons, all of them right."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        a, b = rng.randint(1, 60), rng.randint(1, 39)
        sign = ">" if a > b else "<" if a < b else "="
        lines.append(
            rng.choice([f"{a} + {b} = {a + b}", f"{a} {sign} {b}", f"({a} + {b}) * 2 = {2 * (a + b)}"])
        )
    return "Sums: " + "; ".join(lines) + ";"


def spelling(rng: Random) -> str:
    """Words that mean nothing, read out and repeated in the same order or backwards."""
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(rng.randint(3, 7))]
    if rng.random() < 0.3:
        words = [word.upper() for word in words]
    again = words if rng.random() < 0.7 else words[::-1]
    return f"School: {join(words)}.\n{'Again' if again is words else 'Backwards'}: {join(again)}."


def search(rng: Random) -> str:
    """Somebody looks for entries in the register and tells what to look for, in order."""
    who, goods, port, month = person(rng), rng.choice(CARGO), rng.choice(PORTS), rng.choice(MONTHS)
    fee = rng.randint(5, 99)
    wishes = [
        (f"carried {goods}", f"cargo: {goods}"),
        (f"came from {port}", f"port: {port}"),
        (f"made fast in {month}", f"month: {month}"),
        (f"paid more than {fee} marks", f"fee: more than {fee}"),
        (f"paid less than {fee} marks", f"fee: less than {fee}"),
        (f"had {who} as captain", f"captain: {who}"),
    ]
    picked = rng.sample(wishes, rng.randint(1, 3))
    seeker, what = person(rng).split()[0], rng.choice(["ships", "captains", "ports"])
    return (
        f"{seeker} looks for {what} that {' and '.join(wish for wish, _ in picked)}.\n"
        f"{upper_first(what)}: {'; '.join(field for _, field in picked)}. Date: {date(rng)}."
    )


WRITERS: Final[tuple[Callable[[Random], str], ...]] = (notice, record, codes, sums, spelling, search)
