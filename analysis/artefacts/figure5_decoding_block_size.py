"""Accuracy against forwards, by evaluation block size and confidence threshold."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.evidence.compare import by_point, parent_row, sweep_evaluation
from analysis.evidence.contrasts import LEVELS, at_forwards, in_every_seed, trend_effect
from analysis.evidence.effect import SAME, TREND, Effect
from analysis.evidence.geometry import CEILING_DIGITS, CEILINGS, ceilings, too_few_blocks, with_several_blocks
from analysis.pages.claims import effect_text
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import frontier
from analysis.tables.results import Results

PLACE = 50
TITLE = "Figure 5: evaluation block size and threshold"
TOPIC = "block size"
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
        Table(by_side(rows, results), BY_SIDE),
        Table(ceilings(parent_row(results, SWEEP), rows["eval_block_size"].astype(float)), CEILINGS, CEILING_DIGITS),
        Table(table, "Every decoding block and threshold.", {"TPF": 2, "threshold": 2}, aside=True),
    ]


BY_SIDE = (
    "Points of accuracy per doubling of the block of decoding, at equal forwards per token of the answer, among the "
    "blocks that reach them, up to that of training and from it on."
)


def by_side(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """The slope of the claim, separately for decoding blocks up to the training block and from it on."""
    sizes, trained = rows["eval_block_size"], rows["block_size"]
    table = []
    for what, side in (("up to that of training", sizes <= trained), ("from it on", sizes >= trained)):
        for level in (*LEVELS, 1.0):
            effect = per_doubling(rows[side], results, SWEEP, level)
            if effect.seeds:
                table.append([what, f"{level:g}", effect_text(effect), effect.basis])
    return pd.DataFrame(table, columns=["blocks", "forwards per token", "per doubling", "from"])


def by_block(results: Results) -> pd.DataFrame:
    """Rows of every run at every evaluation block size and threshold."""
    rows = sweep_evaluation(results.of("evaluations", SWEEP), "forwards")
    return of_one_training_block(rows, results).sort_values(["eval_block_size", "threshold"])


def of_one_training_block(rows: pd.DataFrame, results: Results) -> pd.DataFrame:
    """The rows of the training block of Table 1; without any, of that which was decoded with most blocks."""
    tried = rows.groupby("block_size")["eval_block_size"].nunique()
    base = set(results.of("runs", "table1_attention")["block_size"]) & set(tried.index)
    return rows[rows["block_size"] == (min(base) if base else tried.idxmax())] if len(tried) else rows


def large_eval_blocks_at_low_nfe(results: Results, paper: dict) -> list[Effect]:
    """Points of accuracy per doubling of the evaluation block at fixed forwards per token of the answer; at one, where
    the paper finds no clear best, a test of equivalence."""
    rows = by_block(results)
    low = [
        per_doubling(rows, results, SWEEP, level, id=f"at {level:g}", in_paper="better", expectation=TREND)
        for level in LEVELS
    ]
    high = per_doubling(rows, results, SWEEP, 1.0, id="at 1", in_paper="no clear best", expectation=SAME, margin=SLIGHT)
    return [*low, high]


SLIGHT = 1.0  # point per doubling, below which the paper's curves at high NFE cannot be told apart by eye


def per_doubling(rows: pd.DataFrame, results: Results, sweep: str, level: float, **facts: Any) -> Effect:
    """Points of accuracy per doubling of the evaluation block at `level` forwards per token, over the blocks that reach
    it in every seed; at level 1, with one token per step."""
    parent = parent_row(results, sweep)
    if level == 1:
        reached = rows[rows["threshold"].astype(float) >= 1]
    else:
        reached = in_every_seed(at_forwards(rows, results, sweep, level), "eval_block_size")
    reached = with_several_blocks(reached, "eval_block_size", parent)
    sizes = sorted(reached["eval_block_size"].unique())
    blocks = f" (blocks {sizes[0]:g} to {sizes[-1]:g})" if len(sizes) > 1 else ""
    what = f"per doubling of the decoding block, at {level:g} forward{'' if level == 1 else 's'} per token{blocks}"
    if len(sizes) < 2 and len(rows):
        few = f"reach {level:g} forwards per token"
        facts["obstacle"] = too_few_blocks(reached if len(reached) else rows.head(1), "eval_block_size", 2, parent, few)
    missing = [f"{sweep} at two evaluation blocks"]
    return trend_effect(reached, "eval_block_size", what, missing, sweep=sweep, **facts)
