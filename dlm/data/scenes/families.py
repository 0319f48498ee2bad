"""Families of questions about a scene, each with one right answer of 12 to 44 tokens, EOS included.

The steps of an answer are joined by `;`. Cells are named A to P, row by row, and words are spelt as the embedded
tokenizer cuts them into few tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from dlm.data.scenes.drawing import COLOURS, GRID, SHAPES, Symbol

Cells = tuple[Symbol | None, ...]
CELLS = "ABCDEFGHIJKLMNOP"
DIGITS = "0123456789"
ASKED = 5  # cells of a question of `at`
# Spelt with the letters of the font.
WORDS = (
    *("AND", "ART", "BAD", "BED", "BOAT", "CAR", "COAT", "CUP", "DEER", "DOOR", "EAR", "EAST", "FISH", "FOOD", "HAND"),
    *("HAT", "HEAR", "HILL", "ICE", "INN", "LAND", "LEAF", "LION", "NEST", "NOSE", "NUT", "OAR", "OLD"),
    *("PATH", "POOL", "RAIN", "RED", "ROSE", "SAND", "SEA", "SHIP", "SUN", "TENT", "TOP", "TREE", "TUB", "URN", "USE"),
)


def objects(rng: random.Random) -> Cells:
    """Three to six objects in as many cells."""
    cells: list[Symbol | None] = [None] * GRID**2
    for number in rng.sample(range(GRID**2), rng.randint(3, 6)):
        cells[number] = Symbol(rng.choice(SHAPES), rng.choice([*COLOURS]))
    return tuple(cells)


def digits(rng: random.Random) -> Cells:
    """A digit in most cells."""
    names = [rng.choice(DIGITS) if rng.random() < 0.85 else None for _ in range(GRID**2)]
    return tuple(name and Symbol(name, rng.choice([*COLOURS])) for name in names)


def lettered(rng: random.Random) -> Cells:
    """A word of three or four letters in every row."""
    text = "".join(rng.choice(WORDS).ljust(GRID) for _ in range(GRID))
    return tuple(None if letter == " " else Symbol(letter, rng.choice([*COLOURS])) for letter in text)


def described(cells: Cells, number: int) -> str:
    """A cell and what is in it: `F red disc`, or `F none`."""
    symbol = cells[number]
    return f"{CELLS[number]} {symbol.colour} {symbol.name}" if symbol else f"{CELLS[number]} none"


def list_(cells: Cells, rng: random.Random) -> tuple[str, str]:
    """All objects with their cells."""
    return "list:", ";".join(described(cells, number) for number, symbol in enumerate(cells) if symbol)


def at(cells: Cells, rng: random.Random) -> tuple[str, str]:
    """What is in the cells that are asked for, of which about half are empty."""
    full = [number for number, symbol in enumerate(cells) if symbol]
    chosen = rng.sample(full, min(len(full), rng.randint(2, ASKED - 1)))
    asked = chosen + rng.sample([n for n, symbol in enumerate(cells) if not symbol], ASKED - len(chosen))
    rng.shuffle(asked)
    names = "".join(CELLS[number] for number in asked)
    return f"at {names}:", ";".join(described(cells, number) for number in asked)


def count(cells: Cells, rng: random.Random) -> tuple[str, str]:
    """How many objects have each colour."""
    colours = [symbol.colour for symbol in cells if symbol]
    return "count:", ";".join(f"{colour}{colours.count(colour)}" for colour in COLOURS)


def lines(cells: Cells, empty: str) -> str:
    """The names of the symbols, a step for every row."""
    names = [symbol.name if symbol else empty for symbol in cells]
    return ";".join("".join(names[start : start + GRID]) for start in range(0, len(names), GRID))


def grid(cells: Cells, rng: random.Random) -> tuple[str, str]:
    """All digits, with a dot for an empty cell."""
    return "grid:", lines(cells, ".")


def words(cells: Cells, rng: random.Random) -> tuple[str, str]:
    """All words."""
    return "read:", lines(cells, "")


# Of each family: what makes a scene, and what asks about it and knows the answer.
FAMILIES: dict[str, tuple[Callable[[random.Random], Cells], Callable[[Cells, random.Random], tuple[str, str]]]] = {
    "list": (objects, list_),
    "grid": (digits, grid),
    "count": (objects, count),
    "at": (objects, at),
    "words": (lettered, words),
}
