"""From the tables of the results to what artefacts and claims compare: rows of one decoding setting, estimates per
point, effects between points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence.stats import Effect, estimate, over_seeds, paired
from analysis.tables.results import DLM, PARENT, Results, unpack
from dlm.evaluation.generation import DEGENERATE

ONE_TOKEN = "1 token/step"
DOMAINS = ("code", "maths", "symbols")
PERCENT = ("accuracy", *DOMAINS, "cloze", *DEGENERATE)
SCALE = dict.fromkeys(PERCENT, 100) | {"train_flops": 1e-12}
PLAIN = "{:+.3g}"


def own(rows: pd.DataFrame, setting: str | None = ONE_TOKEN, model: str = DLM) -> pd.DataFrame:
    """Rows of the runs' own evaluation (not of an evaluation sweep), of one setting or of all."""
    chosen = rows[(rows["model"] == model) & (rows["evaluation"] == "")] if len(rows) else rows
    return chosen if setting is None or chosen.empty else chosen[chosen["setting"] == setting]


def swept(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of an evaluation that a sweep asks for by this name."""
    return rows[rows["evaluation"] == name]


def parent_row(results: Results, sweeps: str | Sequence[str]) -> pd.DataFrame:
    """The AR parent's one row: it was measured beside every run, with the same result."""
    rows = results.of("evaluations", sweeps)
    return own(rows, model=PARENT).head(1)


def by_point(rows: pd.DataFrame, measures: dict[str, str], by: Sequence[str] = ("point", "label")) -> pd.DataFrame:
    """One row per point (or other columns `by`), in their order, with an estimate of every measure; `measures` maps
    columns of `rows` to the columns of the table."""
    made = []
    for names, group in rows.groupby(list(by), sort=False, dropna=False):
        if group["seed"].duplicated().any():
            raise ValueError(
                f"{dict(zip(by, names, strict=True))} has several rows of one seed: name what tells them apart"
            )
        names = [int(v) if isinstance(v, float) and v.is_integer() else v for v in names]
        scaled = {shown: estimate(group, m, SCALE.get(m, 1)) for m, shown in measures.items()}
        made.append(dict(zip(by, names, strict=True)) | scaled)
    return pd.DataFrame(made, columns=[*by, *measures.values()])


def outcomes(rows: pd.DataFrame) -> dict[int, np.ndarray]:
    """The outcome of every item by seed."""
    known = rows.dropna(subset=["correct"])
    return {int(seed): unpack(packed) for seed, packed in zip(known["seed"], known["correct"], strict=True)}


def accuracy_effect(
    better: pd.DataFrame, worse: pd.DataFrame, what: str, printed: str = "", missing: Sequence[str] = ()
) -> Effect:
    """Percentage points by which the rows `better` are more accurate than `worse`, paired by seed and item. `missing`
    names what has to be run where there is nothing.

    Raises `ValueError` where the two answered different numbers of items.
    """
    first, second = outcomes(better), outcomes(worse)
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return Effect(what, printed=printed, missing=tuple(missing))
    require_same_items(what, *([x[s] for s in seeds] for x in (first, second)))
    differences = np.array([first[s].astype(float) - second[s].astype(float) for s in seeds])
    value, low, high = (100 * x for x in paired(differences))
    runs = pd.concat([better, worse])
    used = tuple(dict.fromkeys(runs.loc[runs["seed"].isin(seeds), "run"]))
    return Effect(what, value, low, high, len(seeds), differences.shape[1], printed=printed, runs=used)


def require_same_items(what: str, *found: Sequence[np.ndarray]) -> None:
    """Raises `ValueError` where outcomes that are to be paired are not of the same number of items."""
    sizes = {len(answers) for some in found for answers in some}
    if len(sizes) > 1:
        raise ValueError(
            f"{what}: the runs answered different items ({' and '.join(map(str, sorted(sizes)))}): evaluate them alike "
            "with python -m dlm.evaluate run=ID"
        )


def compare(
    results: Results, sweep: str, better: str, worse: str, what: str = "", printed: str = "", setting: str = ONE_TOKEN
) -> Effect:
    """`accuracy_effect` between two points of a sweep by their names."""
    rows = own(results.of("evaluations", sweep), setting)
    sides = [rows[rows["point"] == name] if len(rows) else rows for name in (better, worse)]
    lacking = [f"{sweep} {name}" for name, side in zip((better, worse), sides, strict=True) if side.empty]
    return accuracy_effect(*sides, what or f"{better} − {worse}", printed, lacking)


def scalar_effect(
    what: str, by_seed: pd.Series, runs: Sequence[str], shown: str = PLAIN, printed: str = "", missing: str = ""
) -> Effect:
    """An effect that is one number a seed, with Student's interval over the seeds."""
    by_seed = by_seed.dropna()
    if by_seed.empty:
        return Effect(what, printed=printed, missing=(missing,) if missing else ())
    value, low, high = over_seeds(by_seed)
    return Effect(what, value, low, high, len(by_seed), None, shown, printed, tuple(dict.fromkeys(runs)))


def slope_by_seed(rows: pd.DataFrame, x: str, y: str, transform: Callable[[Any], Any] = lambda v: v) -> pd.Series:
    """Least-squares slope of `y` over `x` for every seed that has at least two different `x`."""
    found = {}
    for seed, group in rows.dropna(subset=[x, y]).groupby("seed"):
        mean = group.groupby(x)[y].mean()
        if len(mean) > 1:
            found[seed] = float(np.polyfit(transform(mean.index.to_numpy(dtype=float)), mean.to_numpy(), 1)[0])
    return pd.Series(found, dtype=float)


def inner_best(rows: pd.DataFrame, column: str, sweep: str, printed: tuple[str, str] = ("", "")) -> list[Effect]:
    """Is there a best value of `column` between its smallest and its largest? The most accurate inner value against
    both ends. The inner value is chosen by the data that it is then tested on, which favours it a little."""
    mean = rows.groupby(column)["accuracy"].mean() if len(rows) else pd.Series(dtype=float)
    if len(mean) < 3:
        missing = [f"{sweep} with three values of {column.replace('_', ' ')}"]
        return [Effect(f"best inner {column.replace('_', ' ')} − {end}", missing=tuple(missing)) for end in ENDS]
    best = mean.iloc[1:-1].idxmax()
    ends = (mean.index[0], mean.index[-1])
    return [
        accuracy_effect(rows[rows[column] == best], rows[rows[column] == end], f"{best:g} − {end:g}", said)
        for end, said in zip(ends, printed, strict=True)
    ]


ENDS = ("smallest", "largest")


def at_shared_cost(rows: pd.DataFrame, cost: str, by: str, end: int) -> tuple[float, pd.DataFrame]:
    """The lowest (`end` 0) or highest (1) cost that every curve reaches, a curve being a value of `by` and a seed; and
    `seed, by, accuracy` there, interpolated. Without rows where there is no such cost: a seed that reaches a level with
    fewer of its curves than another would compare something else."""
    curves = {key: group.groupby(cost)["accuracy"].mean() for key, group in rows.groupby(["seed", by])}
    columns = ["seed", by, "accuracy"]
    low = max((curve.index.min() for curve in curves.values()), default=np.nan)
    high = min((curve.index.max() for curve in curves.values()), default=np.nan)
    if not low <= high:
        return float("nan"), pd.DataFrame(columns=columns)
    level = float((low, high)[end])
    return level, pd.DataFrame([(*k, np.interp(level, c.index, c)) for k, c in curves.items()], columns=columns)
