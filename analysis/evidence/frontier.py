"""The frontier of accuracy over forwards per token, and the area under it: one number for a conversion.

At a number of forwards per token, between 0 and the parent's 1, a model has the accuracy of its best decoding setting
that needs no more, interpolated between settings, and none below its cheapest. The mean over all of them, in percent of
the parent's accuracy, is the area: 0 for the AR parent, 100 for what keeps all of it without a forward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import t as student

from analysis.evidence.answers import outcomes, require_same_items, strata
from analysis.evidence.compare import final_evaluation
from analysis.evidence.intervals import LEVEL, over_seeds_and_items
from analysis.evidence.kept import with_kept
from analysis.evidence.stats import Estimate
from analysis.tables.results import PARENT, Results

STEPS = 20
WHOLE = tuple((i + 0.5) / STEPS for i in range(STEPS))  # forwards per token, over which the area is the mean
BySeed = dict[int, Float[np.ndarray, " items"]]


def optimal(cost: Float[np.ndarray, " n"], value: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which points are Pareto-optimal: no other is better in cost or value and no worse in the other. NaN is never
    optimal."""
    as_good = (cost[None] <= cost[:, None]) & (value[None] >= value[:, None])
    better = (cost[None] < cost[:, None]) | (value[None] > value[:, None])
    return ~(as_good & better).any(1) & ~np.isnan(cost) & ~np.isnan(value)


def with_forwards(results: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with what they `kept` of their parent's accuracy (`parents`), a fraction, and their `forwards` per token
    of its answers."""
    of_run = final_evaluation(results.evaluations, model=PARENT).drop_duplicates("run").set_index("run")
    accuracy, nfe = (rows["run"].map(of_run[c]).astype(float) for c in ("accuracy", "nfe"))
    return with_kept(results, rows).assign(forwards=rows["nfe"].astype(float) / nfe, parents=accuracy)


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one model's decoding settings that are Pareto-optimal by their means over seeds, of the settings that
    every seed has."""
    keys = ["evaluation", "setting"]
    known = rows.dropna(subset=["forwards", "kept", "correct"])
    means = known.groupby(keys).agg(cost=("forwards", "mean"), value=("kept", "mean"), seeds=("seed", "nunique"))
    means = means[means["seeds"] == known["seed"].nunique()]
    best = means[optimal(means["cost"].to_numpy(), means["value"].to_numpy())]
    return known[pd.MultiIndex.from_frame(known[keys]).isin(best.index)]


def by_seed(rows: pd.DataFrame, levels: Sequence[float] = WHOLE) -> BySeed:
    """Seed → for every item, its mean outcome over `levels` of forwards per token, in percent of the parent's accuracy.
    `rows` are a `frontier`."""
    return {
        int(seed): 100 / curve["parents"].iloc[0] * np.mean([at_level(curve, level) for level in levels], axis=0)
        for seed, curve in rows.groupby("seed")
    }


def at_level(curve: pd.DataFrame, level: float) -> Float[np.ndarray, " items"]:
    """The outcomes of one seed's curve at a level of forwards per token, interpolated item by item."""
    curve = curve.sort_values("forwards")
    costs, given = curve["forwards"].to_numpy(dtype=float), [outcomes(c) for c in curve["correct"]]
    above = int(np.searchsorted(costs, level, side="right"))
    if above == 0:
        return np.zeros_like(given[0])
    if above == len(costs):
        return given[-1]
    share = (level - costs[above - 1]) / (costs[above] - costs[above - 1])
    return (1 - share) * given[above - 1] + share * given[above]


def reaches(rows: pd.DataFrame, level: float) -> bool:
    """Whether every seed has a setting with at most `level` forwards per token."""
    return len(rows) > 0 and bool((rows.groupby("seed")["forwards"].min() <= level).all())


def over(values: Mapping[int, Float[np.ndarray, " items"]], rows: pd.DataFrame) -> Estimate:
    """The mean over seeds and items with its interval; `rows` name the runs and families."""
    stacked = np.array(list(values.values()))
    mean = over_seeds_and_items(stacked, strata(rows, stacked.shape[1]))
    runs = tuple(dict.fromkeys(rows["run"]))
    return Estimate(mean.value, mean.low, mean.high, *stacked.shape, "seeds and items", runs)


def behind(values: BySeed, best: BySeed, rows: pd.DataFrame) -> Estimate | None:
    """By how much `values` are above `best`, paired by seed and item; None without a common seed."""
    seeds = [seed for seed in best if seed in values]
    if not seeds:
        return None
    require_same_items("the leaderboard", list(values.values()), list(best.values()))
    return over({seed: values[seed] - best[seed] for seed in seeds}, rows)


def next_seed(values: Sequence[float]) -> tuple[float, float] | None:
    """Where one more seed is expected (95 %), from those that are there; None for fewer than two."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        return None
    half = student.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) * math.sqrt(1 + 1 / len(x))
    return float(x.mean() - half), float(x.mean() + half)
