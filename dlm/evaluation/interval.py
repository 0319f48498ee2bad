"""The interval of a fraction."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval (Wilson's score) of the probability behind `successes` of `n` trials. It lies within 0 and 1
    and has some width even where all or none succeed. `ValueError` for `n` = 0 or more successes than trials."""
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return interval.low, interval.high
