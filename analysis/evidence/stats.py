"""Means with their intervals, paired differences, and when a claim is decided.

An interval is at 95 %. Of a mean over seeds it is Student's t; of a single run it is the run's own over its items
(Wilson for proportions), and `Estimate.over` says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import t as student

LEVEL = 0.95
SEEDS_NEEDED = 3
RESAMPLES = 4000
AGREES, DISAGREES, UNDECIDED, NO_RUNS = "agrees", "disagrees", "undecided", "no runs"


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; `n` items, each measured with `seeds` seeds. `low` and `high` are NaN where nothing is
    known of the spread."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1
    n: int | None = None
    over: str = ""


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and Student's interval of the mean over seeds: NaN for one seed, no width for equal values."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = student.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return mean, mean - half, mean + half


def estimate(rows: pd.DataFrame, measure: str, scale: float = 1.0) -> Estimate | None:
    """A measure over the rows of one point, one row a seed; None where it was not measured. A proportion (`scale` 100)
    stays within 0 to 100."""
    rows = rows.dropna(subset=[measure]) if measure in rows else rows.head(0)
    if rows.empty:
        return None
    n = rows[f"{measure}_n"].iloc[0] if f"{measure}_n" in rows else math.nan
    items = None if pd.isna(n) else int(n)
    mean, low, high = over_seeds(rows[measure])
    over = "seeds"
    if len(rows) == 1:
        ends = [rows[c].iloc[0] if (c := f"{measure}_{end}") in rows else math.nan for end in ("low", "high")]
        low, high = (math.nan if pd.isna(end) else float(end) for end in ends)
        over = "" if math.isnan(low) else "items"
    if scale == 100:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(scale * mean, scale * low, scale * high, len(rows), items, over)


def paired(
    differences: Float[np.ndarray, "seeds items"], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of paired differences with its interval over seeds and items.

    Items are drawn by the paired bootstrap (Koehn 2004, "Statistical significance tests for machine translation
    evaluation"; percentile interval, Efron and Tibshirani 1993, chapter 13), all seeds of an item together, because
    their answers are not independent. `scipy.stats.bootstrap` draws along one axis only. The seeds' part is Student's
    t: with three seeds a bootstrap over them calls one in four differences real that are not (all three have the same
    sign by chance). Without spread over items this is `over_seeds`, with one seed the bootstrap over items alone.
    """
    seeds, items = differences.shape
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(items, np.full(items, 1 / items), size=resamples) @ differences.mean(0) / items
    if seeds > 1:
        error = differences.mean(1).std(ddof=1) / math.sqrt(seeds)
        drawn = drawn + error * rng.standard_t(seeds - 1, size=resamples)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(differences.mean()), float(low), float(high)


@dataclass(frozen=True)
class Effect:
    """One comparison behind a claim. The claim expects `value` to lie above 0; `shown` says how to print it (a format
    of `value`), `printed` what the paper prints. `missing` names what has to be run where there is nothing."""

    what: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    items: int | None = None
    shown: str = "{:+.1f} points"
    printed: str = ""
    runs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Undecided where the interval holds 0, is not known, or rests on fewer seeds than a claim needs."""
        if not self.seeds:
            return NO_RUNS
        if self.seeds < SEEDS_NEEDED or not (self.low > 0 or self.high < 0):
            return UNDECIDED
        return AGREES if self.low > 0 else DISAGREES

    @property
    def why(self) -> str:
        """What the verdict rests on, in words."""
        if not self.seeds:
            return "to run: " + ", ".join(self.missing) if self.missing else "nothing measured"
        said = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}" + (f" × {self.items} items" if self.items else "")
        if self.seeds < SEEDS_NEEDED:
            leaning = " over items it agrees," if self.low > 0 else " over items it disagrees," if self.high < 0 else ""
            return f"{said};{leaning} a verdict needs {SEEDS_NEEDED} seeds"
        return said if self.verdict != UNDECIDED else f"{said}; the interval holds 0"


def overall(effects: Sequence[Effect]) -> str:
    """A claim of several comparisons: it disagrees where one does, agrees where all do."""
    verdicts = [e.verdict for e in effects]
    for verdict in (DISAGREES, NO_RUNS, UNDECIDED):
        if verdict in verdicts or not verdicts:
            return verdict if verdicts else NO_RUNS
    return AGREES
