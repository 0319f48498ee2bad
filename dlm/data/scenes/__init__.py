"""Rendered scenes with questions that a program can answer: the tasks of a vision-language model.

A scene is what stands in the cells of a grid (`drawing.py`), and a family asks about it (`families.py`). The hash of
what stands in the cells decides the split, so that no scene of validation or test is trained on under any question.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from dlm.data.example import Example, split_of
from dlm.data.scenes.drawing import draw
from dlm.data.scenes.families import FAMILIES

PREFIX = "scenes."  # of a family, where those of texts are named as well


@dataclass(frozen=True)
class Scene(Example):
    """A question about a picture: the model sees `image`, reads `prompt` and must write exactly `answer`."""

    image: UInt8[np.ndarray, "size size 3"] = field(compare=False, repr=False)

    @property
    def key(self) -> str:
        return f"{self.prompt} {hashlib.sha256(self.image.tobytes()).hexdigest()}"


def sample(family: str, split: str, rng: random.Random) -> Scene:
    """A random question of `family` about a scene that belongs to `split`."""
    make, ask = FAMILIES[family]
    while True:
        cells = make(rng)
        if split_of(repr(cells)) == split:
            return Scene(family, *ask(cells, rng), draw(cells, rng))
