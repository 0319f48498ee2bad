"""Confidence intervals of fractions."""

from __future__ import annotations

from scipy.stats import binomtest

Z95 = 1.959964  # standard errors to either side of a 95 % interval of a mean


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of the success probability, given `successes` of `n` trials. It lies in [0, 1] and
    has positive width even if all or none succeed. Raises `ValueError` for `n` = 0 or more successes than trials."""
    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return interval.low, interval.high
