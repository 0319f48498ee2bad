"""Draws the symbols of a scene: objects of a colour and a shape, digits and letters, one in a cell of a 4 x 4 grid.

A picture is SIZE x SIZE RGB on a plain ground. A symbol fills most of its cell; its place in it and its brightness
vary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

GRID = 4  # cells of a row and of a column
CELL = 12  # pixels of a side
SIZE = GRID * CELL
GROUND = 20  # the grey of the ground, of 255
EXTENT = 10  # pixels of a symbol's height, and of an object's width
COLOURS = {
    "red": (235, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 245),
    "yellow": (240, 225, 40),
    "white": (245, 245, 245),
    "pink": (240, 60, 220),
}
# Three columns and five rows of a glyph, row by row, as octal digits: 7 is a full row, 4 its left pixel.
FONT = {
    **{"0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757"},
    **{"7": "71222", "8": "75757", "9": "75717", "A": "25755", "B": "65656", "C": "34443", "D": "65556"},
    **{"E": "74647", "F": "74644", "H": "55755", "I": "72227", "L": "44447", "N": "65555", "O": "25552"},
    **{"P": "65644", "R": "65655", "S": "34216", "T": "72222", "U": "55557"},
}


def stencils() -> dict[str, Bool[np.ndarray, "h w"]]:
    """The pixels of every shape and glyph, by its name."""
    across = np.arange(EXTENT) - (EXTENT - 1) / 2
    x, y = across[None, :], across[:, None]
    radius, half = np.hypot(x, y), EXTENT / 2
    shapes = {
        "disc": radius <= half,
        "ring": (radius <= half) & (radius > half - 2),
        "bar": np.broadcast_to(abs(y) < 2, radius.shape),
        "cross": (abs(x) < 1.5) | (abs(y) < 1.5),
        "star": abs(abs(x) - abs(y)) < 1.5,
    }
    bits = {name: np.array([[int(row) >> n & 1 for n in (2, 1, 0)] for row in rows]) for name, rows in FONT.items()}
    return shapes | {name: np.kron(glyph, np.ones((2, 2))).astype(bool) for name, glyph in bits.items()}


STENCILS = stencils()
SHAPES = tuple(name for name in STENCILS if name not in FONT)


@dataclass(frozen=True)
class Symbol:
    """What stands in a cell: the name of a stencil, and of a colour."""

    name: str
    colour: str


def draw(cells: Sequence[Symbol | None], rng: random.Random) -> UInt8[np.ndarray, "size size 3"]:
    """The picture of GRID x GRID cells, row by row; None is an empty one."""
    picture = np.full((SIZE, SIZE, 3), GROUND, np.uint8)
    for number, symbol in enumerate(cells):
        if symbol:
            stencil = STENCILS[symbol.name]
            height, width = stencil.shape
            top = number // GRID * CELL + (CELL - height) // 2 + rng.randint(-1, 1)
            left = number % GRID * CELL + (CELL - width) // 2 + rng.randint(-1, 1)
            brightness = rng.uniform(0.85, 1)
            colour = [round(channel * brightness) for channel in COLOURS[symbol.colour]]
            picture[top : top + height, left : left + width][stencil] = colour
    return picture
