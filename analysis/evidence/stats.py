"""What a cell of a table shows: a mean with its 95 % interval, by the method of the claims."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.evidence.answers import answers, strata
from analysis.evidence.intervals import Mean, over_seeds, over_seeds_and_items
from dlm.evaluation.interval import Z95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval from `low` to `high`, NaN if the spread is unknown.

    `n` is the number of items per seed (None if not over items); `over` is what the interval is over: "seeds", "items",
    "seeds and items", or "" for none. `runs` are the ids of the runs behind it.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    seeds: int = 1
    n: int | None = None
    over: str = ""
    runs: tuple[str, ...] = field(default=(), compare=False)


def estimate(rows: pd.DataFrame, measure: str, scale: float = 1.0) -> Estimate | None:
    """Estimate a measure over the rows of one point, one row per seed; None if it was not measured.

    Several seeds: accuracy over seeds and items where every answer is recorded; another measure over seeds, and over
    items by the intervals that the runs record, if they do. One seed: the recorded interval. All values are multiplied
    by `scale`. The interval of a proportion (`scale` 100) is clipped to 0 to 100.
    """
    measured = rows[measure].notna() if measure in rows else pd.Series(False, rows.index)
    rows = rows if measured.all() else rows[measured]  # a copy of a wide table takes longer than all the rest
    if rows.empty:
        return None
    n = rows[f"{measure}_n"].iloc[0] if f"{measure}_n" in rows else math.nan
    items = None if pd.isna(n) else int(n)
    half = recorded_half_width(rows, measure)
    if len(rows) == 1:
        ends = [rows[c].iloc[0] if (c := f"{measure}_{end}") in rows else math.nan for end in ("low", "high")]
        mean, (low, high) = float(rows[measure].iloc[0]), (math.nan if pd.isna(end) else float(end) for end in ends)
        over = "" if math.isnan(low) else "items"
    else:
        interval = answered(rows) if measure == "accuracy" else None
        interval = interval or over_seeds(rows[measure], half / Z95)
        mean, low, high, over = (
            interval.value,
            interval.low,
            interval.high,
            "seeds and items" if interval.item_df else "seeds",
        )
    if scale == 100:
        low, high = max(low, 0.0), min(high, 1.0)
    runs = tuple(rows["run"]) if "run" in rows else ()
    return Estimate(scale * mean, scale * low, scale * high, len(rows), items, over, runs)


def answered(rows: pd.DataFrame) -> Mean | None:
    """Accuracy over the answers of all rows; None unless all record equally many."""
    given = answers(rows) if "correct" in rows else {}
    if len(given) < len(rows) or len({len(a) for a in given.values()}) != 1:
        return None
    values = np.array(list(given.values()))
    return over_seeds_and_items(values, strata(rows, values.shape[1]))


def recorded_half_width(rows: pd.DataFrame, measure: str) -> float:
    """The mean half-width of the intervals over items that the runs record; 0 without any."""
    ends = [f"{measure}_{end}" for end in ("low", "high")]
    if not set(ends) <= set(rows):
        return 0.0
    half = (rows[ends[1]].astype(float) - rows[ends[0]].astype(float)).mean() / 2
    return 0.0 if math.isnan(half) else float(half)
