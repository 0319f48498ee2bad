"""Tasks with long answers whose steps do not depend on each other's results: they could all be made at once.

Every step copies or translates one item of the prompt, and the steps are joined by `;`.
"""

from __future__ import annotations

import random
from string import ascii_lowercase, digits

from dlm.data.families.labels import LETTERS, keyed_digits, labelled

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def shift(rng: random.Random) -> tuple[str, str]:
    """Every small letter moved on by three, around the end of the alphabet."""
    letters = rng.choices(ascii_lowercase, k=rng.randint(14, 18))
    moved = [ascii_lowercase[(ascii_lowercase.index(letter) + 3) % 26] for letter in letters]
    return f"shift:{''.join(labelled(letters))}=", ";".join(labelled(moved))


def replace(rng: random.Random) -> tuple[str, str]:
    """One digit replaced by another, wherever it occurs; a third of the digits are that one."""
    old, new = rng.sample(digits, 2)
    terms = [old if rng.random() < 0.3 else rng.choice(digits) for _ in range(rng.randint(14, 18))]
    changed = [new if term == old else term for term in terms]
    return f"replace {old} by {new}:{''.join(labelled(terms))}=", ";".join(labelled(changed))


def lookup(rng: random.Random) -> tuple[str, str]:
    """The entries of a table, in the order in which they are asked for."""
    table = keyed_digits(rng, 14, 18)
    asked = rng.sample(table, len(table))
    return f"lookup:{''.join(table)}/{''.join(entry[0] for entry in asked)}=", ";".join(asked)


def words(rng: random.Random) -> tuple[str, str]:
    """Digits in words, and whether they are odd."""
    terms = [rng.randrange(10) for _ in range(rng.randint(7, 9))]
    spelt = [f" is {NUMBERS[term]} and {'odd' if term % 2 else 'even'}" for term in terms]
    return f"words:{''.join(labelled(terms))}=", ";".join(labelled(spelt))


def transpose(rng: random.Random) -> tuple[str, str]:
    """The columns of a square of distinct letters and digits as rows."""
    cells, size = rng.sample(LETTERS + digits, 36), 6
    rows = ["".join(cells[i : i + size]) for i in range(0, len(cells), size)]
    return f"transpose:{';'.join(rows)}=", ";".join(map("".join, zip(*rows, strict=True)))


FAMILIES = (shift, replace, lookup, words, transpose)
