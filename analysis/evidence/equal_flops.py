"""Compares runs at equal training FLOPs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.evidence.stats import Estimate, estimate
from analysis.tables.results import Results

AT_EQUAL_FLOPS = (
    "at the last validation and at equal FLOPs: where each run had used the FLOPs of the cheapest at its last "
    "validation, interpolated between validations, of the seeds that all were validated with until then. The learning "
    "rate of a costlier run had not fallen as far there, which tells against it."
)


def training_curves(results: Results, sweep: str, metric: str = "val/nelbo") -> pd.DataFrame:
    """`point, label, seed, run, tokens, flops, value` of a metric at every validation."""
    curves = results.of("curves", sweep)
    curves = curves[curves["metric"] == metric]
    share = curves["tokens"].astype(float) / curves["tokens_of_run"].astype(float)
    curves = curves.assign(flops=curves["train_flops"].astype(float) * share)
    return curves[["point", "label", "seed", "run", "tokens", "flops", "value"]]


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
