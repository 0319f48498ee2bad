"""What artefacts and claims compare, from the tables of the results: rows of one decoding setting, estimates per point,
effects between points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.evidence.answers import answers, families_of, require_same_items, strata
from analysis.evidence.effect import Effect, Part
from analysis.evidence.intervals import over_seeds, over_seeds_and_items
from analysis.evidence.stats import estimate
from analysis.tables.domains import DOMAINS
from analysis.tables.results import DLM, PARENT, Results
from dlm.evaluation.generation import DEGENERATE

ONE_TOKEN = "1 token/step"
SOMETIMES = (*DOMAINS, "right_steps")  # what only some tasks have
PERCENT = ("accuracy", *SOMETIMES, "cloze", *DEGENERATE)
SCALE = dict.fromkeys(PERCENT, 100) | {"train_flops": 1e-12}


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


def parent_accuracy(results: Results, sweeps: str | Sequence[str]) -> float | None:
    """The AR parent's accuracy in percent; None without a run."""
    return accuracy_of(parent_row(results, sweeps))


def accuracy_of(parent: pd.DataFrame) -> float | None:
    """The accuracy in percent of a `parent_row`; None if it is empty."""
    return 100 * float(parent["accuracy"].iloc[0]) if len(parent) else None


def by_point(rows: pd.DataFrame, measures: dict[str, str], by: Sequence[str] = ("point", "label")) -> pd.DataFrame:
    """One row per point (or other columns `by`) in order of appearance, with an `Estimate` over seeds of every measure.

    `measures` maps columns of `rows` to columns of the table; values are scaled by `SCALE`. Those of `SOMETIMES` are
    left out if no row has them. Raises `ValueError` if a group has several rows of one seed.
    """
    asked = {m: c for m, c in measures.items() if m not in SOMETIMES or (m in rows and rows[m].notna().any())}
    table = []
    for names, group in rows.groupby(list(by), sort=False, dropna=False):
        if group["seed"].duplicated().any():
            raise ValueError(
                f"{dict(zip(by, names, strict=True))} has several rows of one seed: name what tells them apart"
            )
        names = [int(v) if isinstance(v, float) and v.is_integer() else v for v in names]
        estimates = {column: estimate(group, m, SCALE.get(m, 1)) for m, column in asked.items()}
        table.append(dict(zip(by, names, strict=True)) | estimates)
    return pd.DataFrame(table, columns=[*by, *asked.values()])


def budgets(rows: pd.DataFrame) -> pd.Series:
    """The training tokens of each row's budget, to two digits."""
    return rows["budget"].fillna(rows["tokens"].map(lambda tokens: float(f"{float(tokens):.2g}"))).astype(float)


def at_budgets(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the `tokens` of their budget, which are the same in every seed and block size."""
    return rows.assign(tokens=rows["budget"].fillna(rows["tokens"]))


def accuracy_effect(
    better: pd.DataFrame, worse: pd.DataFrame, what: str, missing: Sequence[str] = (), **facts: Any
) -> Effect:
    """Percentage points by which the rows `better` are more accurate than `worse`, paired by seed and item.

    Without a common seed the effect has no value, and `missing` names the runs it needs. `facts` are further fields of
    the effect. Raises `ValueError` if the two sides answered different numbers of items.
    """
    return accuracy_contrast([better, worse], [1, -1], what, missing, **facts)


def accuracy_contrast(
    arms: Sequence[pd.DataFrame], weights: Sequence[float], what: str, missing: Sequence[str] = (), **facts: Any
) -> Effect:
    """The sum of the arms' accuracies times their weights, in points, paired by seed and item; else as
    `accuracy_effect`."""
    given = [answers(rows) for rows in arms]
    seeds = sorted(set.intersection(*map(set, given))) if given else []
    if not seeds:
        return Effect(what, missing=tuple(missing), **facts)
    require_same_items(what, *([arm[s] for s in seeds] for arm in given))
    stacked = 100 * np.array([[arm[s] for arm in given] for s in seeds])  # seeds × arms × items
    values = np.einsum("sai,a->si", stacked, np.asarray(weights, dtype=float))
    rows = pd.concat(list(arms))
    rows = rows[rows["seed"].isin(seeds)]
    return Effect(
        what,
        over_seeds_and_items(values, strata(rows, values.shape[1])),
        len(seeds),
        values.shape[1],
        arms=tuple(float(a) for a in stacked.mean((0, 2))),
        runs=tuple(dict.fromkeys(rows["run"])),
        by_family=by_family(values, rows),
        **facts,
    )


def by_family(values: Float[np.ndarray, "seeds items"], rows: pd.DataFrame) -> tuple[Part, ...]:
    """The effect in every family, by growing length of its answers; () where families are not recorded."""
    families = sorted(families_of(rows).items(), key=lambda f: (f[1][0], f[0]))
    return tuple(Part(name, tokens, over_seeds_and_items(values[:, items])) for name, (tokens, items) in families)


def compare(
    results: Results, sweep: str, better: str, worse: str, what: str = "", setting: str = ONE_TOKEN, **facts: Any
) -> Effect:
    """`accuracy_effect` between two points of a sweep, given by name."""
    rows = final_evaluation(results.of("evaluations", sweep), setting)
    sides = [rows[rows["point"] == name] if len(rows) else rows for name in (better, worse)]
    missing = [f"{sweep} {name}" for name, side in zip((better, worse), sides, strict=True) if side.empty]
    facts = {"sweep": sweep, "parent": parent_accuracy(results, sweep)} | facts
    return accuracy_effect(*sides, what or f"{better} − {worse}", missing, **facts)


def scalar_effect(
    what: str,
    by_seed: pd.Series,
    runs: Sequence[str],
    unit: str = "",
    digits: int = 3,
    missing: str = "",
    item_error: float = 0.0,
    **facts: Any,
) -> Effect:
    """An effect with one number per seed, and the standard error over the items it was measured on, if it is known.
    `missing` names the runs it lacks if `by_seed` is empty; `facts` are further fields of the effect."""
    by_seed = by_seed.dropna()
    facts |= {"unit": unit, "digits": digits}
    if by_seed.empty:
        return Effect(what, missing=(missing,) if missing else (), **facts)
    return Effect(what, over_seeds(by_seed, item_error), len(by_seed), runs=tuple(dict.fromkeys(runs)), **facts)


def slope_by_seed(rows: pd.DataFrame, x: str, y: str, transform: Callable[[Any], Any] = lambda v: v) -> pd.Series:
    """Seed → least-squares slope of `y` over `transform(x)`, for seeds with at least two different `x`."""
    slopes = {}
    for seed, group in rows.dropna(subset=[x, y]).groupby("seed"):
        mean = group.groupby(x)[y].mean()
        if len(mean) > 1:
            slopes[seed] = float(np.polyfit(transform(mean.index.to_numpy(dtype=float)), mean.to_numpy(), 1)[0])
    return pd.Series(slopes, dtype=float)
