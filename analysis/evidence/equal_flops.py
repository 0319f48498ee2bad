"""Compares the validation of runs at the end of training and at equal training FLOPs.

Compared are the bounds on answers and on prose, which every run measures on the same tokens (`dlm.data.validation`).
`val/nelbo` weighs the two as each run's rows did, and older runs measured it on tokens of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.evidence.stats import Estimate, estimate
from analysis.tables.results import Results

ANSWERS, PROSE = "val/bits_per_byte_answers", "val/bits_per_byte_prose"
# Column of the runs → heading, and metric of the curves → heading of its value at equal FLOPs.
BOUNDS = {"val_bits_answers": "bits/byte of answers", "val_bits_prose": "bits/byte of prose"}
AT_EQUAL_FLOPS = {ANSWERS: "answers at equal FLOPs", PROSE: "prose at equal FLOPs"}
MEASURED = (
    "Bounds (NELBO) on validation answers and prose, the same tokens for every run, at the last validation and at "
    "equal FLOPs: where each run had used the FLOPs of the cheapest at its last validation, interpolated between "
    "validations, of the seeds that all were validated with until then. The learning rate of a costlier run had not "
    "fallen as far there, which tells against it."
)
NOT_MEASURED = "not measured in these runs"


def training_curves(results: Results, sweep: str, metric: str = ANSWERS) -> pd.DataFrame:
    """`point, label, seed, run, tokens, examples, flops, value` of a metric at every validation."""
    curves = results.of("curves", sweep)
    curves = curves[curves["metric"] == metric]
    share = curves["tokens"].astype(float) / curves["tokens_of_run"].astype(float)
    spent = {"flops": "train_flops", "examples": "examples"}
    curves = curves.assign(**{name: curves[column].astype(float) * share for name, column in spent.items()})
    return curves[["point", "label", "seed", "run", "tokens", "examples", "flops", "value"]]


def with_validation(
    table: pd.DataFrame, key: str, curves: Callable[[str], pd.DataFrame], others: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, str]:
    """A table of training costs with the bounds at equal FLOPs, without those of its columns `BOUNDS` and `others` that
    no run has; and the sentence on them. `curves` gives those of a metric, whose `point` is the column `key`."""
    equal = {heading: at_equal_flops(curves(metric)) for metric, heading in AT_EQUAL_FLOPS.items()}
    table = table.assign(**{heading: [values.get(v) for v in table[key]] for heading, values in equal.items()})
    absent = [c for c in (*others, *BOUNDS.values(), *equal) if table[c].isna().all()]
    sentences = [MEASURED] if set(absent) - set(others) < {*BOUNDS.values(), *equal} else []
    sentences += [f"Not measured in these runs: {'; '.join(absent)}."] if absent else []
    return table.drop(columns=absent), " ".join(sentences) if len(table) else ""


def at_equal_flops(curves: pd.DataFrame) -> dict[str, Estimate]:
    """Point → the estimate over seeds of its metric at equal FLOPs."""
    by_run = runs_at_equal_flops(curves).reset_index()
    return {point: estimate(rows, "value") for point, rows in by_run.groupby("point")}


def runs_at_equal_flops(curves: pd.DataFrame) -> pd.DataFrame:
    """(point, seed) → `run`, and the metric `value` interpolated at the `flops` of the cheapest run's last validation.

    Leaves out runs first validated after that, then seeds that a remaining point lacks.
    """
    known = curves.dropna(subset=["flops", "value"])
    budget = known.groupby("run")["flops"].max().min() if len(known) else 0.0
    rows = [
        {"point": point, "seed": seed, "run": run, "flops": budget, "value": np.interp(budget, *run_curve(group))}
        for (point, seed, run), group in known.groupby(["point", "seed", "run"])
        if group["flops"].min() <= budget
    ]
    at_budget = pd.DataFrame(rows, columns=["point", "seed", "run", "flops", "value"])
    is_common = at_budget.groupby("seed")["point"].nunique() == at_budget["point"].nunique()
    return at_budget[at_budget["seed"].map(is_common).astype(bool)].set_index(["point", "seed"])


def run_curve(rows: pd.DataFrame) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """FLOPs and values of one run, in increasing order of FLOPs."""
    ordered = rows.sort_values("flops")
    return ordered["flops"].to_numpy(), ordered["value"].to_numpy()
