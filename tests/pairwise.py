"""Which cases of a large product are enough for a quick run: every pair of values of two parameters, at least once.

Products over architectures, patterns, block sizes and the token shift fail together, so `make test` takes a covering
part of those with three parameters or more, and `make test-all` takes all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

Case = dict[str, Hashable]


def pairs(case: Case) -> set[tuple]:
    """The pairs of values that a case has, each with the names of its parameters."""
    return set(combinations(sorted(case.items(), key=lambda item: item[0]), 2))


def covering(cases: Sequence[Case]) -> set[int]:
    """The indices of cases that together have every pair of values that occurs in any case: greedily, the case with
    the most pairs that are missing next, the first of equals."""
    missing = set().union(*map(pairs, cases)) if cases else set()
    chosen: set[int] = set()
    while missing:
        gains = [len(pairs(case) & missing) for case in cases]
        best = gains.index(max(gains))
        chosen.add(best)
        missing -= pairs(cases[best])
    return chosen
