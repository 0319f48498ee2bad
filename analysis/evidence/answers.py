"""Which items were answered correctly, by seed, and what family of tasks every item is of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.tables.results import unpack, unpack_families

Answers = dict[int, Float[np.ndarray, " items"]]


def answers(rows: pd.DataFrame) -> Answers:
    """Seed → 1 for each item that was answered correctly, else 0, for the rows that record it. What `at_cost`
    interpolated lies in between."""
    recorded = rows.dropna(subset=["correct"])
    return {int(seed): outcomes(c) for seed, c in zip(recorded["seed"], recorded["correct"], strict=True)}


def outcomes(correct: str | Float[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """The outcomes of a row: packed, or as they are."""
    return unpack(correct).astype(float) if isinstance(correct, str) else correct


def require_same_items(what: str, *sides: Sequence[Float[np.ndarray, " items"]]) -> None:
    """Raise `ValueError` unless all outcomes to be paired have the same number of items."""
    sizes = {len(outcome) for side in sides for outcome in side}
    if len(sizes) > 1:
        raise ValueError(
            f"{what}: the runs answered different items ({' and '.join(map(str, sorted(sizes)))}): evaluate them alike "
            "with python -m dlm.evaluate run=ID"
        )


def families_of(rows: pd.DataFrame) -> dict[str, tuple[float, Int[np.ndarray, " n"]]]:
    """Family → the mean tokens of its answers and the indices of its items; {} unless all rows record the same."""
    texts = set(rows["families"]) if "families" in rows else set()
    text = texts.pop() if len(texts) == 1 else None
    return unpack_families(text) if isinstance(text, str) else {}


def strata(rows: pd.DataFrame, items: int) -> Int[np.ndarray, " items"] | None:
    """The number of each item's family; None where the rows do not record it."""
    families = families_of(rows)
    if not families:
        return None
    numbers = np.zeros(items, dtype=int)
    for number, (_, indices) in enumerate(families.values()):
        numbers[indices] = number
    return numbers
