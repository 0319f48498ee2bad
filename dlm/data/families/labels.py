"""Labels, by which a step of a long answer finds its term."""

from __future__ import annotations

import random
from collections.abc import Iterable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def labelled(terms: Iterable[object]) -> list[str]:
    """Terms, at most 26, with the letters from A on before them."""
    return [f"{letter}{term}" for letter, term in zip(LETTERS, terms, strict=False)]


def keyed_digits(rng: random.Random, low: int, high: int) -> list[str]:
    """Between `low` and `high` random digits, each behind a letter of its own; the letters are in random order."""
    return [f"{letter}{rng.randrange(10)}" for letter in rng.sample(LETTERS, rng.randint(low, high))]
