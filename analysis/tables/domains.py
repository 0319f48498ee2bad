"""Which tasks stand for the paper's code and maths benchmarks, and accuracy over them."""

from __future__ import annotations

from typing import Any

from analysis.tables.results import columns
from dlm.evaluation.interval import wilson

DOMAINS = {
    "maths": ("add", "running_sum", "word_problem"),
    "code": ("list_eval", "str_eval", "brackets"),
    "symbols": ("reverse", "sort", "count"),
}


def proportion(name: str, value: float, n: int) -> dict[str, float]:
    """A fraction of `n` with Wilson's 95 % interval."""
    return columns(name, value, *wilson(round(value * n), n), n)


def domains(families: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The accuracy over the items of each domain's families."""
    found: dict[str, float] = {}
    for name, members in DOMAINS.items():
        n = sum(families[f]["n"] for f in members)
        found |= proportion(name, sum(families[f]["accuracy"] * families[f]["n"] for f in members) / n, n)
    return found
