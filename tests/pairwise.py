"""Which cases of a large product are enough for a quick run.

Products over architectures, patterns, block sizes and the token shift fail together, so `make test` takes of each those
cases that together have every pair of values of two parameters, or where these are more than `MANY`, every value of
every parameter. `make test-all` takes all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

MANY = 6
Case = dict[str, Hashable]


def tuples(case: Case, size: int) -> set[tuple]:
    """The values that a case has, in tuples of `size`, each value with the name of its parameter."""
    return set(combinations(sorted(case.items(), key=lambda item: item[0]), size))


def covering(cases: Sequence[Case], size: int) -> set[int]:
    """The indices of cases that together have every tuple of values that occurs in any case: greedily, the case with
    the most tuples that are missing next, the first of equals."""
    missing = set().union(*(tuples(case, size) for case in cases))
    chosen: set[int] = set()
    while missing:
        gains = [len(tuples(case, size) & missing) for case in cases]
        best = gains.index(max(gains))
        chosen.add(best)
        missing -= tuples(cases[best], size)
    return chosen


def enough(cases: Sequence[Case]) -> set[int]:
    """The indices of the cases that a quick run takes. Each case has at least two parameters."""
    pairwise = covering(cases, 2)
    return pairwise if len(pairwise) <= MANY else covering(cases, 1)
