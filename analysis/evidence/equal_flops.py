"""Runs compared where their training had cost the same FLOPs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence.stats import Estimate, estimate
from analysis.tables.results import Results

AT_EQUAL_FLOPS = (
    "at the last validation and at equal FLOPs: where each run had used the FLOPs of the cheapest at its last "
    "validation, interpolated between validations, of the seeds that all were validated with until then. The learning "
    "rate of a costlier run had not fallen as far there, which tells against it."
)


def training_curves(results: Results, sweep: str, metric: str = "val/nelbo") -> pd.DataFrame:
    """`point, seed, run, tokens, flops, value` of a metric at every validation."""
    found = results.of("curves", sweep)
    found = found[found["metric"] == metric]
    share = found["tokens"].astype(float) / found["tokens_of_run"].astype(float)
    found = found.assign(flops=found["train_flops"].astype(float) * share)
    return found[["point", "label", "seed", "run", "tokens", "flops", "value"]]


def at_equal_flops(curves: pd.DataFrame) -> dict[str, Estimate]:
    """Point → the metric of `of_runs_at_equal_flops`."""
    found = of_runs_at_equal_flops(curves).reset_index()
    return {point: estimate(rows, "value") for point, rows in found.groupby("point")}


def of_runs_at_equal_flops(curves: pd.DataFrame) -> pd.DataFrame:
    """(point, seed) → its `run`, the metric (`value`) where it had used the FLOPs of the cheapest run of all at its
    last validation, and these `flops`. Of the seeds that every point has, but for runs first validated later."""
    known = curves.dropna(subset=["flops", "value"])
    budget = known.groupby("run")["flops"].max().min() if len(known) else 0.0
    made = [
        {"point": point, "seed": seed, "run": run, "flops": budget, "value": np.interp(budget, *run_curve(group))}
        for (point, seed, run), group in known.groupby(["point", "seed", "run"])
        if group["flops"].min() <= budget
    ]
    found = pd.DataFrame(made, columns=["point", "seed", "run", "flops", "value"])
    everywhere = found.groupby("seed")["point"].nunique() == found["point"].nunique()
    return found[found["seed"].map(everywhere).astype(bool)].set_index(["point", "seed"])


def run_curve(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and values of one run in order."""
    ordered = rows.sort_values("flops")
    return ordered["flops"].to_numpy(), ordered["value"].to_numpy()
