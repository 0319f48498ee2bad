"""The paper's open question 3: does the best training block size depend on the parent's size?"""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point, final_evaluation
from analysis.pages.exhibits import Exhibit, Plot, Table
from analysis.pages.plots import lines
from analysis.tables.results import Results

PLACE = 210
TITLE = "Beyond the paper: the best block size by parent size"
TOPIC = "block size"
SWEEPS = ("block_by_size",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEP)).sort_values(["parameters", "block_size", "seed"])
    rows = rows.assign(size=[f"{v / 1e6:.3g}M parameters" for v in rows["parameters"]])
    relative = rows.merge(parents(results), on="parent", how="left") if len(rows) else rows.assign(parent_accuracy=[])
    relative = relative.assign(kept=relative["accuracy"] / relative["parent_accuracy"])
    measures = {
        "accuracy": "accuracy %",
        "kept": "kept",
        "nfe": "NFE",
        "bits_per_byte": "bits/byte",
        "train_flops": "TFLOP",
    }
    table = by_point(relative, measures, ("size", "block_size")).rename(
        columns={"size": "parent", "block_size": "block"}
    )
    panels = (
        lines(rows, "block_size", "accuracy", "size", "", "training block size", "accuracy, %", 100, log=True),
        lines(
            relative,
            "block_size",
            "kept",
            "size",
            "",
            "training block size",
            "accuracy, fraction of its parent's",
            log=True,
        ),
    )
    return [
        Plot("block_by_size", panels, "At one token per step; bands: range over seeds.", "Accuracy over block size"),
        Table(best_blocks(rows), "The most accurate block size of every parent, of each seed by itself."),
        Table(table, KEPT, {"kept": 2, "bits/byte": 3, "TFLOP": 2}),
    ]


KEPT = (
    "Kept: as a fraction of its parent's accuracy. Parents differ in the tokens that they were trained on, too, not "
    "only in size."
)


def parents(results: Results) -> pd.DataFrame:
    """`parent` (fingerprint) and `parent_accuracy` of every parent."""
    rows = final_evaluation(results.of("evaluations", SWEEP), model="parent").drop_duplicates("parent")
    return rows[["parent", "accuracy"]].rename(columns={"accuracy": "parent_accuracy"})


def best_blocks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per parent: the most accurate block size over all seeds, and for each seed."""
    table = []
    for name, group in rows.groupby("size", sort=False):
        mean = group.groupby("block_size")["accuracy"].mean()
        best_rows = group.loc[group.groupby("seed")["accuracy"].idxmax()].sort_values("seed")
        by_seed = ", ".join(f"{block:g}" for block in best_rows["block_size"])
        table.append({"parent": name, "best block": f"{mean.idxmax():g}", "by seed": by_seed})
    return pd.DataFrame(table, columns=["parent", "best block", "by seed"])
