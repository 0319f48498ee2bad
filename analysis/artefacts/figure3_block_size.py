"""Accuracy by training and evaluation block size."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point, final_evaluation, inner_best, sweep_evaluation
from analysis.evidence.stats import Effect
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table, headings
from analysis.pages.plots import heat_map
from analysis.tables.results import Results

PLACE = 30
TITLE = "Figure 3: training and evaluation block size"
SWEEPS = ("figure3_block_size",)
SWEEP = SWEEPS[0]
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
    """Each training block is decoded with the same evaluation block."""
    rows = final_evaluation(results.of("evaluations", SWEEP))
    grid = paper["figure3_block_size"]
    small, large = (best_to_ends(grid[name], grid["eval_block_size"]) for name in MODELS)
    in_paper = tuple(f"{one} (4B: {other})" for one, other in zip(small, large, strict=True))
    return inner_best(rows, "block_size", SWEEP, in_paper)


def best_to_ends(grid: dict[int, list[float]], sizes: list[int]) -> tuple[str, str]:
    """The paper's best training block minus the smallest, and minus the largest, each decoded with the same block."""
    accuracy_of = {block: row[sizes.index(block)] for block, row in grid.items()}
    best = max(accuracy_of, key=accuracy_of.get)
    first, last = (f"{best} − {end}: {accuracy_of[best] - accuracy_of[end]:+.1f}" for end in (min(grid), max(grid)))
    return first, last
