"""Problems of MATH, and whether an answer is right."""

from __future__ import annotations

from typing import Any

import datasets

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def problems(**metadata: Any) -> dict[str, datasets.Dataset]:
    """The test problems of all subjects: `problem`, `solution`, `level`, `type`."""
    parts = [datasets.load_dataset("EleutherAI/hendrycks_math", subject, split="test") for subject in SUBJECTS]
    return {"test": datasets.concatenate_datasets(parts)}


def is_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last value of an answer equals that of the solution, as mathematics and not as text."""
    from math_verify import parse, verify

    return {"math_verify": float(verify(gold=parse(doc["solution"]), target=parse(results[0])))}
