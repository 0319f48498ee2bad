"""Accuracy by training and evaluation block size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.evidence.compare import (
    by_point,
    final_evaluation,
    parent_accuracy,
    parent_row,
    sweep_evaluation,
)
from analysis.evidence.contrasts import LEVELS, at_forwards, bend, in_every_seed, sweet_spot
from analysis.evidence.effect import Effect
from analysis.evidence.geometry import too_few_blocks, with_several_blocks
from analysis.evidence.kept import with_kept
from analysis.pages import tips
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.pages.grids import heat_map
from analysis.tables.results import Results

PLACE = 30
TITLE = "Figure 3: training and evaluation block size"
TOPIC = "block size"
SWEEPS = ("figure3_block_size",)
SWEEP = SWEEPS[0]
BLOCK = "training block"
MODELS = {"qwen2_5_1_5b_50b_tokens": "paper, 1.5B", "qwen3_4b_25b_tokens": "paper, 4B"}
PARENTS = {"qwen2_5_1_5b_50b_tokens": "qwen2_5_1_5b", "qwen3_4b_25b_tokens": "qwen3_4b"}
LIMITS = (0.0, 100.0)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = with_kept(results, one_token(results))
    theirs = {MODELS[name]: in_percent(paper, name) for name in MODELS}
    here = grid(rows)
    sizes = sorted({float(s) for g in (here, *theirs.values()) for s in (*g.index, *g.columns)})
    names = [f"{size:g}" for size in sizes]
    drawn = {"here": here} | theirs if len(rows) else theirs
    panels = tuple(
        heat_map(
            values.reindex(names, columns=names), title, *AXES, LIMITS, notes=notes(rows) if title == "here" else {}
        )
        for title, values in drawn.items()
    )
    alt = "Heat maps of accuracy over training and evaluation block size, ours and the paper's"
    return [
        Plot("figure3_block_size", panels, SAID, alt),
        Table(pivoted(rows), TABLE),
    ]


AXES = "evaluation block", "training block"
SAID = (
    "At one token per step, in percent of the AR parent's accuracy; framed: decoded with the block of training. Here: "
    "mean over seeds. The paper's: average of six tasks; it does not print its 4B parent's, which is taken from its "
    "Table 3."
)


TABLE = "Accuracy in percent at one token per step. Rows: training block; columns: block of decoding."


def pivoted(rows: pd.DataFrame) -> pd.DataFrame:
    """Training blocks as rows, evaluation blocks as columns, estimates of accuracy as cells."""
    table = by_point(rows, {"accuracy": "accuracy"}, ("block_size", "eval_block_size"))
    if table.empty:
        return pd.DataFrame()
    wide = table.pivot(index="block_size", columns="eval_block_size", values="accuracy")
    return wide.rename(columns="decoded with {:g}".format).rename_axis("training block").reset_index()


def one_token(results: Results) -> pd.DataFrame:
    """Rows of every run at every evaluation block size, at one token per step."""
    rows = sweep_evaluation(results.of("evaluations", SWEEP), "decoding_block_size")
    return rows.sort_values(["block_size", "eval_block_size", "seed"])


def grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy in percent of the parent's: training blocks as rows, evaluation blocks as columns."""
    if rows.empty:
        return pd.DataFrame()
    table = 100 * rows.pivot_table(index="block_size", columns="eval_block_size", values="kept", aggfunc="mean")
    table.index, table.columns = [f"{v:g}" for v in table.index], [f"{v:g}" for v in table.columns]
    return table


def notes(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(training block, evaluation block) → the tip of its cell."""
    head = "training block {:g}, decoded with {:g}"
    return {
        (f"{block:g}", f"{size:g}"): tips.of_rows(group, "accuracy", head.format(block, size), 100)
        for (block, size), group in rows.groupby(["block_size", "eval_block_size"])
    }


def in_percent(paper: dict, name: str) -> pd.DataFrame:
    """A grid of the paper in percent of its parent's accuracy, with names like those of `grid`."""
    section = paper["figure3_block_size"]
    values = pd.DataFrame(section[name], index=section["eval_block_size"]).T
    values.index, values.columns = [f"{v:g}" for v in values.index], [f"{v:g}" for v in values.columns]
    return 100 * values / paper["parents"][PARENTS[name]]


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
    differences = []
    for name in MODELS:
        grid = paper["figure3_block_size"][name]
        accuracy = np.array([row[sizes.index(block)] for block, row in sorted(grid.items())])
        ends = {"small": accuracy[0], "large": accuracy[-1]}
        bent = bend(np.log2(sorted(grid))) @ accuracy
        differences.append(float(bent if id == "bend" else accuracy[1:-1].mean() - ends[id]))
    parent = {row[0]: row[-1] for row in paper["table1_attention"]["rows"]}["a"]
    return {
        "in_paper": f"{differences[0]:+.1f} (4B: {differences[1]:+.1f})",
        "paper": differences[0],
        "paper_parent": parent,
    }
