"""Means over seeds and items: their errors, intervals and tests, in closed form.

An evaluation is two-way: S seeds answer the same I items, and both are samples. The variance of the mean is

    σ²_seed / S + σ²_item / I + σ²_noise / (S I)

The spread of the seed means holds the first and the last term, the spread of the item means the last two, so the noise
is taken out of the latter. Families are fixed by design and every one is asked: items vary within theirs (stratified).

The half-width of an interval is √((t_S−1 · seed error)² + (t_I−F · item error)²): the errors' own Student intervals,
put together by the method of variance estimates recovery (Howe 1974; Zou and Donner 2008). `docs/results/coverage.md`
says why not by Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 100  # beyond which more seeds are no remedy
SMALLEST_TAIL = 1e-12


def student_quantile(tail: float, df: float) -> float:
    """What Student's t with `df` degrees of freedom exceeds with probability `tail`: `scipy.stats.t.isf`, whose checks
    of arrays cost forty times the function."""
    return -float(ndtri(tail) if math.isinf(df) else stdtrit(df, tail))


@dataclass(frozen=True)
class Mean:
    """A mean with its standard errors over seeds and over items, and the degrees of freedom of both.

    An error of 0 contributes nothing; a mean without degrees of freedom has an unknown interval.
    """

    value: float
    seed_error: float = 0.0
    item_error: float = 0.0
    seed_df: float = 0.0
    item_df: float = 0.0

    def half(self, tail: float) -> float:
        """The half-width of the interval that leaves out `tail` on either side."""
        if not (self.seed_df > 0 or self.item_df > 0):
            return math.nan
        parts = ((self.seed_error, self.seed_df), (self.item_error, self.item_df))
        return math.hypot(*(error * student_quantile(tail, df) for error, df in parts if df > 0))

    @property
    def low(self) -> float:
        return self.value - self.half((1 - LEVEL) / 2)

    @property
    def high(self) -> float:
        return self.value + self.half((1 - LEVEL) / 2)

    @property
    def p(self) -> float:
        """The two-sided p-value of no difference from 0; NaN without an interval."""
        one_sided = min(self.p_above(0.0), self.scaled(-1.0).p_above(0.0))
        return math.nan if math.isnan(one_sided) else min(1.0, 2 * one_sided)

    def p_above(self, bound: float) -> float:
        """The one-sided p-value of the hypothesis that the true mean is at most `bound`: the tail whose interval just
        reaches it."""
        distance = self.value - bound
        if math.isnan(self.half(0.25)):
            return math.nan
        if distance <= 0 or self.half(0.25) == 0:
            return 0.0 if distance > 0 else 0.5 if distance == 0 else 1 - self.scaled(-1.0).p_above(-bound)
        if self.half(SMALLEST_TAIL) <= distance:
            return SMALLEST_TAIL
        return float(brentq(lambda tail: self.half(tail) - distance, SMALLEST_TAIL, 0.5))

    def p_within(self, margin: float) -> float:
        """The p-value of the two one-sided tests (Schuirmann 1987) that the true mean is not within ± `margin`."""
        return max(self.p_above(-margin), self.scaled(-1.0).p_above(-margin))

    @property
    def detectable(self) -> float:
        """The smallest effect that is found at the 5 % level with a power of 80 %."""
        return self.half((1 - LEVEL) / 2) + self.half(1 - POWER)

    def seeds_to_detect(self, effect: float) -> int | None:
        """How many seeds would detect `effect`; None if no number up to `MOST_SEEDS` does."""
        return next((s for s in range(2, MOST_SEEDS + 1) if self.with_seeds(s).detectable <= effect), None)

    def with_seeds(self, seeds: int) -> Mean:
        """The same with as many seeds, at the spread of those there are."""
        had = self.seed_df + 1
        return replace(self, seed_error=self.seed_error * math.sqrt(had / seeds), seed_df=seeds - 1)

    def scaled(self, factor: float) -> Mean:
        """The mean of the values times `factor`."""
        sizes = (self.seed_error * abs(factor), self.item_error * abs(factor))
        return replace(self, value=self.value * factor, seed_error=sizes[0], item_error=sizes[1])


def over_seeds(values: Sequence[float], item_error: float = 0.0) -> Mean:
    """The mean of one value per seed. `item_error`: the standard error over what was measured, if it is known."""
    x = np.asarray(values, dtype=float)
    error = float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else 0.0
    return Mean(float(x.mean()), error, item_error, len(x) - 1, math.inf if item_error else 0.0)


def over_seeds_and_items(
    values: Float[np.ndarray, "seeds items"], families: Int[np.ndarray, " items"] | None = None
) -> Mean:
    """The mean over seeds and items, items within their `families` (a number for each item); None: one family.

    Raises `ValueError` if the number of families' entries is not that of the items.
    """
    seeds, items = values.shape
    families = np.zeros(items, dtype=int) if families is None else np.unique(families, return_inverse=True)[1]
    if len(families) != items:
        raise ValueError(f"{len(families)} families are given for {items} items: name that of every item")
    seed_error, item_error = (float(error) for error in two_way_errors(values, families))
    return Mean(float(values.mean()), seed_error, item_error, seeds - 1, items - families.max() - 1)


def two_way_errors(
    values: Float[np.ndarray, "*draws seeds items"], families: Int[np.ndarray, " items"]
) -> tuple[Float[np.ndarray, "*draws"], Float[np.ndarray, "*draws"]]:
    """The standard errors of the mean over seeds and over items. That over seeds is 0 for one seed; that over items is
    without the noise of seeds on items, which the former holds, as far as it can be told apart."""
    seeds, items = values.shape[-2:]
    df = items - families.max() - 1
    deviations = values - family_means(values, families)
    by_item = deviations.mean(-2, keepdims=True)
    item_variance = (by_item**2).sum((-2, -1)) / df / items if df > 0 else np.zeros(values.shape[:-2])
    if seeds == 1:
        return np.zeros(values.shape[:-2]), np.sqrt(item_variance)
    noise = ((deviations - by_item) ** 2).sum((-2, -1)) / ((seeds - 1) * df * seeds * items) if df > 0 else 0.0
    seed_error = values.mean(-1).std(-1, ddof=1) / math.sqrt(seeds)
    return seed_error, np.sqrt(np.maximum(item_variance - noise, 0.0))


def family_means(
    values: Float[np.ndarray, "*draws seeds items"], families: Int[np.ndarray, " items"]
) -> Float[np.ndarray, "*draws seeds items"]:
    """For every seed and item, the mean of the seed over the item's family."""
    member = np.eye(families.max() + 1)[families]
    return (values @ member / member.sum(0))[..., families]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given. NaN stays NaN and does not count."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted
