"""A small domain language: entries of an invented harbour's log. Generated, and the same for a seed.

The form (field order, separators, units, abbreviations) is fixed and unusual; names, goods and numbers are
drawn. A language model that has never seen it is surprised at first and learns the form in a few dozen steps,
so that an adapter's effect shows in the loss on entries that it was not trained on.
"""

from __future__ import annotations

import random

_RIGS = ("brig", "ketch", "cog", "lugger", "pinnace", "schooner")
_NAMES = ("Halvard", "Merrow", "Saint Ebba", "Grey Tern", "Constance", "Old Fathom", "Lantern", "Withy")
_PORTS = ("Ostby", "Carrow Sound", "Lindholm", "Vell", "Tarn Ferry", "Skerrymouth")
_HOLDS = ("casks", "crates", "bales", "sacks", "barrels")
_GOODS = ("saltfish", "lamp-glass", "raw wool", "tallow", "barley", "tin ingots", "cork", "madder root")
_QUAYS = ("north quay", "chain quay", "fish steps", "outer mole")
_PILOTS = ("A. Rook", "J. Penhallow", "M. Stride", "T. Oake")
_REMARKS = (
    "seals intact, sails by vespers",
    "two hands sick, lies off till cleared",
    "hull fouled, to be careened",
    "manifest short, sworn before the reeve",
)


def _cargo(rng: random.Random) -> str:
    return f"{rng.randint(2, 90)} {rng.choice(_HOLDS)} {rng.choice(_GOODS)}"


def entry(rng: random.Random) -> str:
    """One line of the log."""
    goods = " + ".join(_cargo(rng) for _ in range(rng.randint(1, 3)))
    return (
        f"§{rng.randint(100, 999)} {rng.choice(('ebb', 'flood', 'slack'))}/{rng.randint(1, 12)}"
        f" :: {rng.choice(_RIGS)} {rng.choice(_NAMES)} <{rng.choice(_PORTS)}>"
        f" :: holds {goods} :: duty {rng.randint(1, 30)}m {rng.randint(0, 11)}p"
        f" :: {rng.choice(_QUAYS)} no.{rng.randint(1, 9)} :: plt {rng.choice(_PILOTS)}"
        f" :: rem. {rng.choice(_REMARKS)}"
    )


def page(seed: int, entries: int) -> str:
    """`entries` lines; the same text for the same arguments, on every machine."""
    rng = random.Random(seed)
    return "\n".join(entry(rng) for _ in range(entries)) + "\n"
