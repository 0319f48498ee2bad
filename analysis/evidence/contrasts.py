"""Trends and curvatures of accuracy over an ordered choice, and accuracy at a fixed cost of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.evidence.answers import outcomes
from analysis.evidence.compare import accuracy_contrast, parent_row
from analysis.evidence.effect import QUADRATIC, TREND, Effect
from analysis.evidence.geometry import tokens_per_answer
from analysis.tables.results import Results

LEVELS = (0.25, 0.5)  # forwards per token at which decoding is compared, beside one


def slope(x: Sequence[float]) -> Float[np.ndarray, " n"]:
    """Weights that give the least-squares slope over `x`."""
    centred = np.asarray(x, dtype=float) - np.mean(x)
    return centred / (centred**2).sum()


def bend(x: Sequence[float]) -> Float[np.ndarray, " n"]:
    """Weights of the quadratic contrast over `x`: 0 for every straight line, above 0 where inner values exceed outer
    ones. Scaled so that it is a difference of two weighted means."""
    quadratic = np.polynomial.polynomial.polyvander(np.asarray(x, dtype=float) - np.mean(x), 2)
    weights = -np.linalg.qr(quadratic)[0][:, 2] * np.sign(np.linalg.qr(quadratic)[1][2, 2])
    return weights / weights[weights > 0].sum()


def trend_effect(rows: pd.DataFrame, column: str, what: str, missing: Sequence[str] = (), **facts: Any) -> Effect:
    """Points of accuracy per doubling of `column`."""
    values = sorted(rows[column].unique()) if len(rows) else []
    facts = {"expectation": TREND} | facts
    if len(values) < 2:
        return Effect(what, missing=tuple(missing), **facts)
    return accuracy_contrast([rows[rows[column] == v] for v in values], slope(np.log2(values)), what, missing, **facts)


def sweet_spot(
    rows: pd.DataFrame, column: str, unit: str, sweep: str, obstacle: str = "", **facts: Any
) -> list[Effect]:
    """Whether a middle value of `column` is best: the quadratic contrast over its logarithm (`id` bend), and the mean
    of the inner values against either end. No value is chosen by the data.

    Where the fitted parabola bends down but has its top outside the values, they do not hold a best one in between.
    """
    values = sorted(rows[column].unique()) if len(rows) else []
    missing = (f"{sweep} with three values of {unit}",)
    names = {"bend": f"inner − outer values of {unit}, quadratic", "small": "inner mean − smallest"}
    names |= {"large": "inner mean − largest"}
    if len(values) < 3:
        facts |= {"missing": missing, "sweep": sweep, "obstacle": obstacle}
        return [Effect(what, id=id, **facts) for id, what in names.items()]
    arms, x = [rows[rows[column] == v] for v in values], np.log2(values)
    inner = np.full(len(values), 1 / (len(values) - 2))
    weights = {
        "bend": bend(x),
        "small": inner * (x > x[0]) * (x < x[-1]) - (x == x[0]),
        "large": inner * (x > x[0]) * (x < x[-1]) - (x == x[-1]),
    }
    shape = {"bend": {"expectation": QUADRATIC, "obstacle": top_outside(rows, column, unit)}}
    return [
        accuracy_contrast(arms, weights[id], what, id=id, sweep=sweep, **shape.get(id, {}), **facts)
        for id, what in names.items()
    ]


def top_outside(rows: pd.DataFrame, column: str, unit: str) -> str:
    """Why a bend is no best value in between: the fitted parabola has its top outside the values; "" if inside, or if
    there is none."""
    mean = rows.groupby(column)["accuracy"].mean()
    x = np.log2(mean.index.to_numpy(dtype=float))
    curvature, steepness, _ = np.polyfit(x, mean.to_numpy(dtype=float), 2)
    if curvature >= 0 or x[0] <= (top := -steepness / (2 * curvature)) <= x[-1]:
        return ""
    first, last = (f"{mean.index[i]:g}" for i in (0, -1))
    return f"the curve's top would lie at a {unit} of {2**top:.2g}, outside the values tried ({first} to {last})"


def at_cost(rows: pd.DataFrame, cost: str, by: Sequence[str], level: float) -> pd.DataFrame:
    """The rows' answers at a level of `cost`, interpolated item by item between the decoding settings around it: one
    row per seed and values of `by`, with the columns of one of its rows. Leaves out curves that do not reach it."""
    answers_at_cost = []
    for _, curve in rows.dropna(subset=[cost, "correct"]).groupby(["seed", *by], dropna=False):
        curve = curve.sort_values(cost)
        costs, given = curve[cost].to_numpy(dtype=float), curve["correct"].tolist()
        for i, j in pairwise(range(len(costs))):
            if costs[i] <= level <= costs[j] and costs[i] < costs[j]:
                share = (level - costs[i]) / (costs[j] - costs[i])
                mixed = (1 - share) * outcomes(given[i]) + share * outcomes(given[j])
                answers_at_cost.append(
                    curve.iloc[i].to_dict() | {"correct": mixed, "accuracy": mixed.mean(), cost: level}
                )
                break
    return pd.DataFrame(answers_at_cost, columns=rows.columns)


def at_forwards(rows: pd.DataFrame, results: Results, sweep: str, level: float) -> pd.DataFrame:
    """`at_cost` at `level` forwards per token of the parent's answers, for every training and decoding block and budget
    of training."""
    parent = parent_row(results, sweep)
    if rows.empty or parent.empty:
        return rows.head(0)
    rows = rows.assign(forwards=rows["nfe"].astype(float) / tokens_per_answer(parent))
    return at_cost(rows, "forwards", ("block_size", "eval_block_size", "tokens"), level)


def in_every_seed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of those values of `column` that every seed has."""
    seeds = rows.groupby(column)["seed"].nunique() if len(rows) else pd.Series(dtype=float)
    return rows[rows[column].isin(seeds[seeds == rows["seed"].nunique()].index)]
