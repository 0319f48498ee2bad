"""Accuracy against forwards, by evaluation block size and confidence threshold."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence.compare import at_shared_cost, by_point, scalar_effect, slope_by_seed, sweep_evaluation
from analysis.evidence.stats import Effect
from analysis.pages.claims import effect_text
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table, headings
from analysis.pages.plots import frontier
from analysis.tables.results import Results

PLACE = 50
TITLE = "Figure 5: evaluation block size and threshold"
SWEEPS = ("figure3_block_size",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = by_block(results)
    measures = headings("accuracy", "tpf", "nfe")
    table = by_point(rows, measures, ("eval_block_size", "threshold")).rename(columns={"eval_block_size": "block"})
    rows = rows.assign(line=[f"block {v:g}" for v in rows["eval_block_size"]])
    panel = frontier(rows, "nfe", "line", "threshold", "", "forwards per answer (NFE)")
    caption = "Each line is one evaluation block size through its confidence thresholds, mean over seeds."
    return [
        Plot(
            "figure5_decoding_block_size",
            (panel,),
            caption,
            "Accuracy against forwards per answer by evaluation block size",
        ),
        Table(by_side(rows), BY_SIDE),
        Table(table, CELLS, {"TPF": 2, "threshold": 2}),
    ]


BY_SIDE = (
    "Points of accuracy per doubling of the block of decoding, at the fewest forwards that all blocks compared reach, "
    "among blocks up to that of training and from it on."
)


def by_side(rows: pd.DataFrame) -> pd.DataFrame:
    """The slope of the claim, separately for decoding blocks up to the training block and from it on."""
    columns = ["blocks", "per doubling", "from"]
    sizes, trained = rows["eval_block_size"], rows["block_size"]
    effects = [
        scalar_effect(what, per_doubling(rows[side], 0), rows.loc[side, "run"], "{:+.1f} points")
        for what, side in (("up to that of training", sizes <= trained), ("from it on", sizes >= trained))
    ]
    return pd.DataFrame([[e.what, effect_text(e), e.why] for e in effects if e.seeds], columns=columns)


def by_block(results: Results) -> pd.DataFrame:
    """Rows of every run at every evaluation block size and threshold."""
    rows = sweep_evaluation(results.of("evaluations", SWEEP), "forwards")
    return rows.sort_values(["eval_block_size", "threshold"])


def large_eval_blocks_at_low_nfe(results: Results, paper: dict) -> list[Effect]:
    """Points of accuracy per doubling of the evaluation block, at the fewest and the most forwards that all blocks
    reach."""
    rows = by_block(results)
    low, high = (per_doubling(rows, end) for end in (0, 1))
    runs, missing = rows["run"], f"{SWEEP} at two evaluation blocks with overlapping NFE"
    points = "{:+.1f} points"
    return [
        scalar_effect("per doubling of the block, at the fewest forwards", low, runs, points, "better", missing),
        scalar_effect("… more than at the most forwards", low - high, runs, points, "no clear best", missing),
    ]


def per_doubling(rows: pd.DataFrame, end: int) -> pd.Series:
    """Seed → points of accuracy per doubling of the evaluation block, at the lowest (`end` 0) or highest (1) NFE that
    all blocks of all seeds reach."""
    _, at_level = at_shared_cost(rows, "nfe", "eval_block_size", end)
    return 100 * slope_by_seed(at_level, "eval_block_size", "accuracy", np.log2)
