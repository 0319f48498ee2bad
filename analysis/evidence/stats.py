"""Means with intervals, paired differences, and the verdict on a claim.

Intervals are at 95 %. For a mean over seeds they are Student's t; for a single run, over its items (Wilson for
proportions). `Estimate.over` names which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import t as student

LEVEL = 0.95
SEEDS_NEEDED = 3
RESAMPLES = 4000
AGREES, DISAGREES, UNDECIDED, NO_RUNS = "agrees", "disagrees", "undecided", "no runs"


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval from `low` to `high`, NaN if the spread is unknown.

    `n` is the number of items per seed (None if not over items); `over` is what the interval is over: "seeds", "items",
    or "" for none.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1
    n: int | None = None
    over: str = ""


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) with Student's interval of the mean: NaN ends for one seed, zero width for equal values."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = student.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return mean, mean - half, mean + half


def estimate(rows: pd.DataFrame, measure: str, scale: float = 1.0) -> Estimate | None:
    """Estimate a measure over the rows of one point, one row per seed; None if it was not measured.

    All values are multiplied by `scale`. The interval of a proportion (`scale` 100) is clipped to 0 to 100.
    """
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


def paired_interval(
    differences: Float[np.ndarray, "seeds items"], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences, with an interval over seeds and items.

    Items are resampled by the paired bootstrap (Koehn 2004, "Statistical significance tests for machine translation
    evaluation"; percentile interval, Efron and Tibshirani 1993, chapter 13), all seeds of an item together, because
    their answers are not independent; `scipy.stats.bootstrap` resamples along one axis only. The variation over seeds
    is Student's t: a bootstrap over three seeds would declare one in four null differences real (all three have the
    same sign by chance). Without spread over items the result is that of `over_seeds`; with one seed it is the
    bootstrap over items alone.
    """
    seeds, items = differences.shape
    counts, rng = resampled(items, resamples, seed)
    means = counts @ differences.mean(0) / items
    if seeds > 1:
        error = differences.mean(1).std(ddof=1) / math.sqrt(seeds)
        means = means + error * deepcopy(rng).standard_t(seeds - 1, size=resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(differences.mean()), float(low), float(high)


@lru_cache(maxsize=4)  # a report has a hundred intervals over the same few numbers of items
def resampled(items: int, resamples: int, seed: int) -> tuple[Int[np.ndarray, "resamples items"], np.random.Generator]:
    """How often each resample has each item, and the generator as drawing them left it, which is not to be advanced."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=resamples), rng


@dataclass(frozen=True)
class Effect:
    """One comparison behind a claim, which expects `value` to lie above 0.

    `number_format` is the format of `value`, with its unit; `in_paper` the paper's result as printed there. `runs` are
    the ids compared; `missing` names the runs to make if there is nothing to compare.
    """

    what: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    items: int | None = None
    number_format: str = "{:+.1f} points"
    in_paper: str = ""
    runs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Undecided if the interval contains 0, is unknown, or rests on fewer than `SEEDS_NEEDED` seeds."""
        if not self.seeds:
            return NO_RUNS
        if self.seeds < SEEDS_NEEDED or not (self.low > 0 or self.high < 0):
            return UNDECIDED
        return AGREES if self.low > 0 else DISAGREES

    @property
    def why(self) -> str:
        """The evidence behind the verdict: seeds, items, and why it is undecided."""
        if not self.seeds:
            return "to run: " + ", ".join(self.missing) if self.missing else "nothing measured"
        basis = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}" + (f" × {self.items} items" if self.items else "")
        if self.seeds < SEEDS_NEEDED:
            leaning = " over items it agrees," if self.low > 0 else " over items it disagrees," if self.high < 0 else ""
            return f"{basis};{leaning} a verdict needs {SEEDS_NEEDED} seeds"
        return basis if self.verdict != UNDECIDED else f"{basis}; the interval holds 0"


def overall_verdict(effects: Sequence[Effect]) -> str:
    """The verdict over several comparisons: disagrees if any does, agrees if all do."""
    verdicts = [e.verdict for e in effects]
    for verdict in (DISAGREES, NO_RUNS, UNDECIDED):
        if verdict in verdicts or not verdicts:
            return verdict if verdicts else NO_RUNS
    return AGREES
