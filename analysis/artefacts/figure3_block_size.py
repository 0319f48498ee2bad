"""Accuracy by training and evaluation block size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence.compare import by_point, final_evaluation, parent_accuracy, parent_row, sweep_evaluation
from analysis.evidence.contrasts import LEVELS, at_forwards, bend, in_every_seed, sweet_spot
from analysis.evidence.effect import Effect
from analysis.evidence.geometry import too_few_blocks, with_several_blocks
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table, headings
from analysis.pages.plots import heat_map
from analysis.tables.results import Results

PLACE = 30
TITLE = "Figure 3: training and evaluation block size"
SWEEPS = ("figure3_block_size",)
SWEEP = SWEEPS[0]
BLOCK = "training block"
MODELS = {"qwen2_5_1_5b_50b_tokens": "paper, 1.5B", "qwen3_4b_25b_tokens": "paper, 4B"}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = one_token(results)
    in_paper = paper["figure3_block_size"]
    axes = "evaluation block", "training block"
    here = [heat_map(mean_grid(rows), "here, accuracy %", *axes)] if len(rows) else []
    theirs = []
    for name, title in MODELS.items():
        values = pd.DataFrame(in_paper[name], index=in_paper["eval_block_size"]).T
        theirs.append(heat_map(values, f"{title}, accuracy %", *axes))
    measures = headings("accuracy", "tpf", "nfe")
    table = by_point(rows, measures, ("block_size", "eval_block_size"))
    names = {"block_size": "training block", "eval_block_size": "evaluation block"}
    alt = "Heat map of accuracy over training and evaluation block size"
    return [
        Plot("figure3_block_size", tuple(here), "Accuracy at one token per step, mean over seeds.", alt),
        Plot("figure3_block_size_paper", tuple(theirs), "The paper's: average of six tasks.", f"{alt}, of the paper"),
        Table(table.rename(columns=names), CELLS, {"TPF": 2}),
    ]


def one_token(results: Results) -> pd.DataFrame:
    """Rows of every run at every evaluation block size, at one token per step."""
    rows = sweep_evaluation(results.of("evaluations", SWEEP), "decoding_block_size")
    return rows.sort_values(["block_size", "eval_block_size", "seed"])


def mean_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy in percent: training blocks as rows, evaluation blocks as columns."""
    table = 100 * rows.pivot_table(index="block_size", columns="eval_block_size", values="accuracy", aggfunc="mean")
    table.index, table.columns = [f"{v:g}" for v in table.index], [f"{v:g}" for v in table.columns]
    return table


def block_size_sweet_spot(results: Results, paper: dict) -> list[Effect]:
    """Each training block is decoded with the same evaluation block, at one token per step and, where that was
    measured, at equal forwards. Blocks that hold most answers whole are left out."""
    evaluations, parent = results.of("evaluations", SWEEP), parent_row(results, SWEEP)
    facts = {"parent": parent_accuracy(results, SWEEP)}
    rows = with_several_blocks(final_evaluation(evaluations), "block_size", parent)
    obstacle = too_few_blocks(rows, "block_size", 3, parent, "were trained")
    effects = sweet_spot(rows, "block_size", BLOCK, SWEEP, obstacle=obstacle, **facts)
    effects = [replace(effect, **in_the_paper(paper, effect.id)) for effect in effects]
    own = sweep_evaluation(evaluations, "forwards")
    own = own[own["eval_block_size"] == own["block_size"]] if len(own) else own
    for level in LEVELS:
        at_level = in_every_seed(at_forwards(own, results, SWEEP, level), "block_size")
        at_level = with_several_blocks(at_level, "block_size", parent)
        if at_level["block_size"].nunique() > 2:
            curve = sweet_spot(at_level, "block_size", BLOCK, SWEEP, **facts)[0]
            what = f"{curve.what}, at {level:g} forwards per token"
            effects.append(replace(curve, id=f"bend at {level:g}", what=what))
    return effects


def in_the_paper(paper: dict, id: str) -> dict[str, Any]:
    """The paper's contrast over its own training blocks, each decoded with the same block, as fields of an effect: that
    of the smaller model, as text both."""
    sizes = paper["figure3_block_size"]["eval_block_size"]
    found = []
    for name in MODELS:
        grid = paper["figure3_block_size"][name]
        accuracy = np.array([row[sizes.index(block)] for block, row in sorted(grid.items())])
        ends = {"small": accuracy[0], "large": accuracy[-1]}
        bent = bend(np.log2(sorted(grid))) @ accuracy
        found.append(float(bent if id == "bend" else accuracy[1:-1].mean() - ends[id]))
    parent = {row[0]: row[-1] for row in paper["table1_attention"]["rows"]}["a"]
    return {"in_paper": f"{found[0]:+.1f} (4B: {found[1]:+.1f})", "paper": found[0], "paper_parent": parent}
