"""One item that a model is asked, how an output is judged, and to which split it belongs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import zip_longest

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Example:
    """One task: the model reads `prompt` and must write exactly `answer`."""

    family: str
    prompt: str
    answer: str

    @property
    def key(self) -> str:
        """What no other item of an evaluation may equal."""
        return self.prompt


def check(example: Example, output: str) -> bool:
    """Whether an output matches the answer exactly, except for surrounding white space."""
    return output.strip() == example.answer.strip()


@dataclass(frozen=True)
class Grade:
    """How far an output follows the steps of an answer: the share of them that are right, each at its place, and the
    index of the first that is wrong, missing or one too many (None for a right output)."""

    right: float
    first_wrong: int | None


def grade(example: Example, output: str) -> Grade:
    """The steps of an output, which `;` joins, against those of the answer."""
    wanted, given = (text.strip().split(";") for text in (example.answer, output))
    is_right = [step == other for step, other in zip_longest(wanted, given)]
    return Grade(sum(is_right) / len(wanted), None if all(is_right) else is_right.index(False))


def split_of(prompt: str) -> str:
    """The split of a prompt, or of what stands for one: 5 % are val, 5 % test, the rest train."""
    bucket = hashlib.blake2b(prompt.encode(), digest_size=4).digest()[0] % 20
    return SPLITS[bucket] if bucket < len(SPLITS) else "train"
