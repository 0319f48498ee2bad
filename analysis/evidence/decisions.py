"""Decision accuracy: how often two points are ordered alike here and where it counts (as in DataDecide).

Two points are ordered where the interval of their difference excludes 0; a pair that is a tie on either side is neither
right nor wrong. Pairs share points, so that they are not independent: the interval counts as many pairs as there are
points less one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
from scipy.stats import beta

from analysis.evidence.compare import accuracy_effect
from analysis.evidence.effect import Effect
from analysis.evidence.intervals import LEVEL

SAME, OPPOSITE, TIE = "same order", "opposite order", "tie"
PAPER_TIE = 1.0  # points: the paper prints no intervals, so that a smaller difference there counts as a tie


@dataclass(frozen=True)
class Order:
    """The difference of two points in points of accuracy, and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, effect: Effect) -> Order:
        return cls(effect.value, effect.low, effect.high)

    @classmethod
    def printed(cls, difference: float) -> Order:
        """That of the paper."""
        return cls(difference, difference - PAPER_TIE, difference + PAPER_TIE)

    @property
    def sign(self) -> int:
        """Which of the two is better: 1 the first, −1 the second; 0: a tie."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Pair:
    """Two points, and their order `here` and `there`; `runs` are those of here."""

    first: str
    second: str
    here: Order
    there: Order
    runs: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        signs = self.here.sign * self.there.sign
        return TIE if signs == 0 else SAME if signs > 0 else OPPOSITE


@dataclass(frozen=True)
class Contest:
    """All pairs of `points` points that are known here and there; `name` says where there is."""

    name: str
    points: int
    pairs: tuple[Pair, ...] = ()

    def count(self, outcome: str) -> int:
        return sum(pair.outcome == outcome for pair in self.pairs)

    @property
    def accuracy(self) -> tuple[float, float, float] | None:
        """The share of ordered pairs with the same order, with its interval (Jeffreys); None without any."""
        same, ordered = self.count(SAME), self.count(SAME) + self.count(OPPOSITE)
        if not ordered:
            return None
        share, n = same / ordered, min(ordered, self.points - 1)
        tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
        low, high = (float(beta.ppf(tail, share * n + 0.5, (1 - share) * n + 0.5)) for tail in tails)
        return share, low if same else 0.0, high if same < ordered else 1.0

    @property
    def by_means(self) -> float | None:
        """The share of all pairs whose means have the same order, ties or not; None without pairs."""
        alike = [pair.here.value * pair.there.value > 0 for pair in self.pairs]
        return sum(alike) / len(alike) if alike else None


def between_runs(name: str, here: Mapping[str, pd.DataFrame], there: Mapping[str, pd.DataFrame]) -> Contest:
    """The contest of the points that have rows here and there. Pairs without a common seed are left out."""
    both = [point for point in here if point in there]
    pairs = []
    for a, b in combinations(both, 2):
        effects = [accuracy_effect(rows[a], rows[b], f"{a} − {b}") for rows in (here, there)]
        if all(effect.seeds for effect in effects):
            pairs.append(Pair(a, b, *map(Order.of, effects), effects[0].runs))
    return Contest(name, len(both), tuple(pairs))


def with_paper(name: str, groups: Sequence[tuple[Mapping[str, pd.DataFrame], Mapping[str, float]]]) -> Contest:
    """The contest with the paper over groups of points: rows here, and accuracies in percent there. Only points of one
    group are paired. Each further group takes a degree of freedom."""
    pairs, points = [], 1
    for here, there in groups:
        both = [point for point in here if point in there and len(here[point])]
        points += max(len(both) - 1, 0)
        for a, b in combinations(both, 2):
            effect = accuracy_effect(here[a], here[b], f"{a} − {b}")
            if effect.seeds:
                pairs.append(Pair(a, b, Order.of(effect), Order.printed(there[a] - there[b]), effect.runs))
    return Contest(name, points if pairs else 0, tuple(pairs))
