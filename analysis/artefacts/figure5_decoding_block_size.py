"""Accuracy against forwards, by evaluation block size and confidence threshold."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.compare import at_cost, by_point, scalar_effect, shared_costs, slope_by_seed, swept
from analysis.exhibits import CELLS, Exhibit, Plot, Table, named
from analysis.plots import frontier
from analysis.results import Results
from analysis.stats import Effect

PLACE = 50
TITLE = "Figure 5: evaluation block size and threshold"
SWEEPS = ("figure3_block_size",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = by_block(results)
    shown = named("accuracy", "tpf", "nfe")
    table = by_point(rows, shown, ("eval_block_size", "threshold")).rename(columns={"eval_block_size": "block"})
    rows = rows.assign(line=[f"block {v:g}" for v in rows["eval_block_size"]])
    panel = frontier(rows, "nfe", "line", "threshold", "", "forwards per answer (NFE)")
    said = "Each line is one evaluation block size through its confidence thresholds, mean over seeds."
    return [
        Plot(
            "figure5_decoding_block_size",
            (panel,),
            said,
            "Accuracy against forwards per answer by evaluation block size",
        ),
        Table(table, CELLS, {"TPF": 2, "threshold": 2}),
    ]


def by_block(results: Results) -> pd.DataFrame:
    rows = swept(results.of("evaluations", SWEEP), "forwards")
    return rows.sort_values(["eval_block_size", "threshold"])


def large_eval_blocks_at_low_nfe(results: Results, paper: dict) -> list[Effect]:
    """Points of accuracy per doubling of the block, at the fewest and at the most forwards that all blocks reach."""
    rows = by_block(results)
    low, high = (per_doubling(rows, end) for end in (0, 1))
    runs, missing = rows["run"], f"{SWEEP} at two evaluation blocks with overlapping NFE"
    shown = "{:+.1f} points"
    return [
        scalar_effect("per doubling of the block, at the fewest forwards", low, runs, shown, "better", missing),
        scalar_effect("… more than at the most forwards", low - high, runs, shown, "no clear best", missing),
    ]


def per_doubling(rows: pd.DataFrame, end: int) -> pd.Series:
    """By seed, points of accuracy per doubling of the block, at the lowest (or highest) NFE that all blocks reach."""
    return 100 * slope_by_seed(at_level(rows, end), "eval_block_size", "accuracy", np.log2)


def at_level(rows: pd.DataFrame, end: int) -> pd.DataFrame:
    """`seed, eval_block_size, accuracy`, every curve interpolated at the lowest (or highest) shared NFE."""
    if rows.empty:
        return pd.DataFrame(columns=["seed", "eval_block_size", "accuracy"])
    level = shared_costs(rows, "nfe", "eval_block_size")[end]
    groups = rows.groupby(["seed", "eval_block_size"])
    made = [(*names, at_cost(group, "nfe", level)) for names, group in groups]
    return pd.DataFrame(made, columns=["seed", "eval_block_size", "accuracy"])
