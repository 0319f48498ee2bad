"""What artefacts and claims compare, from the tables of the results: rows of one decoding setting, estimates per point,
effects between points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from analysis.evidence.stats import Effect, estimate, over_seeds, paired_interval
from analysis.tables.results import DLM, PARENT, Results, unpack
from dlm.evaluation.generation import DEGENERATE

ONE_TOKEN = "1 token/step"
DOMAINS = ("code", "maths", "symbols")
PERCENT = ("accuracy", *DOMAINS, "cloze", *DEGENERATE)
SCALE = dict.fromkeys(PERCENT, 100) | {"train_flops": 1e-12}
PLAIN = "{:+.3g}"


def final_evaluation(rows: pd.DataFrame, setting: str | None = ONE_TOKEN, model: str = DLM) -> pd.DataFrame:
    """Rows of the evaluation that ends every run, for one decoding setting or, with None, all."""
    final = rows[(rows["model"] == model) & (rows["evaluation"] == "")] if len(rows) else rows
    return final if setting is None or final.empty else final[final["setting"] == setting]


def sweep_evaluation(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of the sweep's evaluation `name`."""
    return rows[rows["evaluation"] == name]


def parent_row(results: Results, sweeps: str | Sequence[str]) -> pd.DataFrame:
    """One row of the AR parent. It was measured with every run, with the same result."""
    rows = results.of("evaluations", sweeps)
    return final_evaluation(rows, model=PARENT).head(1)


def by_point(rows: pd.DataFrame, measures: dict[str, str], by: Sequence[str] = ("point", "label")) -> pd.DataFrame:
    """One row per point (or other columns `by`) in order of appearance, with an `Estimate` over seeds of every measure.

    `measures` maps columns of `rows` to columns of the table; values are scaled by `SCALE`. Raises `ValueError` if a
    group has several rows of one seed.
    """
    table = []
    for names, group in rows.groupby(list(by), sort=False, dropna=False):
        if group["seed"].duplicated().any():
            raise ValueError(
                f"{dict(zip(by, names, strict=True))} has several rows of one seed: name what tells them apart"
            )
        names = [int(v) if isinstance(v, float) and v.is_integer() else v for v in names]
        estimates = {column: estimate(group, m, SCALE.get(m, 1)) for m, column in measures.items()}
        table.append(dict(zip(by, names, strict=True)) | estimates)
    return pd.DataFrame(table, columns=[*by, *measures.values()])


def outcomes(rows: pd.DataFrame) -> dict[int, Bool[np.ndarray, " items"]]:
    """Seed → whether each item was answered correctly, for the rows that record it."""
    recorded = rows.dropna(subset=["correct"])
    return {int(seed): unpack(packed) for seed, packed in zip(recorded["seed"], recorded["correct"], strict=True)}


def accuracy_effect(
    better: pd.DataFrame, worse: pd.DataFrame, what: str, in_paper: str = "", missing: Sequence[str] = ()
) -> Effect:
    """Percentage points by which the rows `better` are more accurate than `worse`, paired by seed and item.

    Without a common seed the effect has no value, and `missing` names the runs it needs. Raises `ValueError` if the two
    sides answered different numbers of items.
    """
    first, second = outcomes(better), outcomes(worse)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return Effect(what, in_paper=in_paper, missing=tuple(missing))
    require_same_items(what, *([side[s] for s in seeds] for side in (first, second)))
    differences = np.array([first[s].astype(float) - second[s].astype(float) for s in seeds])
    value, low, high = (100 * x for x in paired_interval(differences))
    runs = pd.concat([better, worse])
    run_ids = tuple(dict.fromkeys(runs.loc[runs["seed"].isin(seeds), "run"]))
    return Effect(what, value, low, high, len(seeds), differences.shape[1], in_paper=in_paper, runs=run_ids)


def require_same_items(what: str, *sides: Sequence[Bool[np.ndarray, " items"]]) -> None:
    """Raise `ValueError` unless all outcomes to be paired have the same number of items."""
    sizes = {len(outcome) for side in sides for outcome in side}
    if len(sizes) > 1:
        raise ValueError(
            f"{what}: the runs answered different items ({' and '.join(map(str, sorted(sizes)))}): evaluate them alike "
            "with python -m dlm.evaluate run=ID"
        )


def compare(
    results: Results, sweep: str, better: str, worse: str, what: str = "", in_paper: str = "", setting: str = ONE_TOKEN
) -> Effect:
    """`accuracy_effect` between two points of a sweep, given by name."""
    rows = final_evaluation(results.of("evaluations", sweep), setting)
    sides = [rows[rows["point"] == name] if len(rows) else rows for name in (better, worse)]
    missing = [f"{sweep} {name}" for name, side in zip((better, worse), sides, strict=True) if side.empty]
    return accuracy_effect(*sides, what or f"{better} − {worse}", in_paper, missing)


def scalar_effect(
    what: str,
    by_seed: pd.Series,
    runs: Sequence[str],
    number_format: str = PLAIN,
    in_paper: str = "",
    missing: str = "",
) -> Effect:
    """An effect with one number per seed and Student's interval over seeds; `missing` names the runs it lacks if
    `by_seed` is empty."""
    by_seed = by_seed.dropna()
    if by_seed.empty:
        return Effect(what, in_paper=in_paper, missing=(missing,) if missing else ())
    value, low, high = over_seeds(by_seed)
    return Effect(what, value, low, high, len(by_seed), None, number_format, in_paper, tuple(dict.fromkeys(runs)))


def slope_by_seed(rows: pd.DataFrame, x: str, y: str, transform: Callable[[Any], Any] = lambda v: v) -> pd.Series:
    """Seed → least-squares slope of `y` over `transform(x)`, for seeds with at least two different `x`."""
    slopes = {}
    for seed, group in rows.dropna(subset=[x, y]).groupby("seed"):
        mean = group.groupby(x)[y].mean()
        if len(mean) > 1:
            slopes[seed] = float(np.polyfit(transform(mean.index.to_numpy(dtype=float)), mean.to_numpy(), 1)[0])
    return pd.Series(slopes, dtype=float)


def inner_best(rows: pd.DataFrame, column: str, sweep: str, in_paper: tuple[str, str] = ("", "")) -> list[Effect]:
    """Test for a best value of `column` between its extremes: the most accurate inner value against both ends.

    The inner value is selected on the same data, which favours it a little.
    """
    mean = rows.groupby(column)["accuracy"].mean() if len(rows) else pd.Series(dtype=float)
    if len(mean) < 3:
        missing = [f"{sweep} with three values of {column.replace('_', ' ')}"]
        return [Effect(f"best inner {column.replace('_', ' ')} − {end}", missing=tuple(missing)) for end in ENDS]
    best = mean.iloc[1:-1].idxmax()
    ends = (mean.index[0], mean.index[-1])
    return [
        accuracy_effect(rows[rows[column] == best], rows[rows[column] == end], f"{best:g} − {end:g}", text)
        for end, text in zip(ends, in_paper, strict=True)
    ]


ENDS = ("smallest", "largest")


def at_shared_cost(rows: pd.DataFrame, cost: str, by: str, end: int) -> tuple[float, pd.DataFrame]:
    """The lowest (`end` 0) or highest (1) cost that every curve reaches, and `seed, by, accuracy` interpolated there.

    There is one curve per seed and value of `by`. If the curves share no cost, the cost is NaN and the table empty:
    dropping curves instead would make seeds incomparable.
    """
    curves = {key: group.groupby(cost)["accuracy"].mean() for key, group in rows.groupby(["seed", by])}
    columns = ["seed", by, "accuracy"]
    low = max((curve.index.min() for curve in curves.values()), default=np.nan)
    high = min((curve.index.max() for curve in curves.values()), default=np.nan)
    if not low <= high:
        return float("nan"), pd.DataFrame(columns=columns)
    level = float((low, high)[end])
    return level, pd.DataFrame([(*k, np.interp(level, c.index, c)) for k, c in curves.items()], columns=columns)
