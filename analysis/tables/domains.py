"""Domains of tasks, and the accuracy over each. Those of short answers stand for the paper's code and maths benchmarks;
those of long ones are told apart by whether a step needs the result of the step before."""

from __future__ import annotations

from typing import Any

from analysis.tables.results import columns
from dlm.data.families import parallel, sequential
from dlm.evaluation.interval import wilson

DOMAINS = {
    "maths": ("add", "running_sum", "word_problem"),
    "code": ("list_eval", "str_eval", "brackets"),
    "symbols": ("reverse", "sort", "count"),
    "sequential": tuple(family.__name__ for family in sequential.FAMILIES),
    "parallel": tuple(family.__name__ for family in parallel.FAMILIES),
}


def proportion(name: str, value: float, n: int) -> dict[str, float]:
    """A fraction of `n` with Wilson's 95 % interval."""
    return columns(name, value, *wilson(round(value * n), n), n)


def domains(families: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Accuracy over all items of each domain that was asked, from `families` (name → `accuracy`, `n`)."""
    row: dict[str, float] = {}
    for name, members in DOMAINS.items():
        if not families.keys() >= set(members):
            continue
        n = sum(families[f]["n"] for f in members)
        row |= proportion(name, sum(families[f]["accuracy"] * families[f]["n"] for f in members) / n, n)
    return row
