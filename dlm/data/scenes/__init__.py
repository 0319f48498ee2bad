"""Rendered scenes with questions that a program can answer: the tasks of a vision-language model.

A scene is what stands in the cells of a grid (`drawing.py`), and a family asks about it (`families.py`). The hash of
what stands in the cells decides the split, so that no scene of validation or test is trained on under any question.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from dlm.data import tasks
from dlm.data.scenes.drawing import draw
from dlm.data.scenes.families import FAMILIES


@dataclass(frozen=True)
class Scene(tasks.Example):
    """A question about a picture: the model sees `image`, reads `prompt` and must write exactly `answer`."""

    image: UInt8[np.ndarray, "size size 3"] = field(compare=False, repr=False)


def sample(family: str, split: str, rng: random.Random) -> Scene:
    """A random question of `family` about a scene that belongs to `split`."""
    make, ask = FAMILIES[family]
    while True:
        cells = make(rng)
        if tasks.split_of(repr(cells)) == split:
            return Scene(family, *ask(cells, rng), draw(cells, rng))


def evaluation_set(split: str, per_family: int, seed: int = 0, families: Iterable[str] | None = None) -> list[Scene]:
    """`per_family` questions of each of the `families`, by default all, about distinct scenes; equal arguments give
    equal questions."""
    scenes: dict[tuple[str, str, bytes], Scene] = {}
    for family in FAMILIES if families is None else families:
        rng, target = random.Random(f"{split}-{family}-{seed}"), len(scenes) + per_family
        while len(scenes) < target:
            scene = sample(family, split, rng)
            scenes.setdefault((scene.prompt, scene.answer, scene.image.tobytes()), scene)
    return list(scenes.values())
