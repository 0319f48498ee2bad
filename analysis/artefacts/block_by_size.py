"""The paper's open question 3: does the best training block size depend on the parent's size?"""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point, final_evaluation
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table
from analysis.pages.plots import lines
from analysis.tables.results import Results

PLACE = 210
TITLE = "Beyond the paper: the best block size by parent size"
SWEEPS = ("block_by_size",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEP)).sort_values(["parameters", "block_size", "seed"])
    rows = rows.assign(size=[f"{v / 1e6:.3g}M parameters" for v in rows["parameters"]])
    kept = rows.merge(parents(results), on="parent", how="left") if len(rows) else rows.assign(parent_accuracy=[])
    kept = kept.assign(kept=kept["accuracy"] / kept["parent_accuracy"])
    shown = {
        "accuracy": "accuracy %",
        "kept": "kept",
        "tpf": "TPF",
        "nfe": "NFE",
        "bits_per_byte": "bits/byte",
        "train_flops": "TFLOP",
    }
    table = by_point(kept, shown, ("size", "block_size")).rename(columns={"size": "parent", "block_size": "block"})
    panels = (
        lines(rows, "block_size", "accuracy", "size", "", "training block size", "accuracy, %", 100, log=True),
        lines(
            kept,
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
        Table(best(rows), "The most accurate block size of every parent, of each seed by itself."),
        Table(table, f"{KEPT} {CELLS}", {"TPF": 2, "kept": 2, "bits/byte": 3, "TFLOP": 2}),
    ]


KEPT = (
    "Kept: as a fraction of its parent's accuracy. Parents differ in the tokens that they were trained on, too, not "
    "only in size."
)


def parents(results: Results) -> pd.DataFrame:
    """The accuracy of every parent by its fingerprint."""
    rows = final_evaluation(results.of("evaluations", SWEEP), model="parent").drop_duplicates("parent")
    return rows[["parent", "accuracy"]].rename(columns={"accuracy": "parent_accuracy"})


def best(rows: pd.DataFrame) -> pd.DataFrame:
    """Parent → the best block size over all seeds, and of each."""
    made = []
    for name, group in rows.groupby("size", sort=False):
        mean = group.groupby("block_size")["accuracy"].mean()
        each = group.loc[group.groupby("seed")["accuracy"].idxmax()].sort_values("seed")
        by_seed = ", ".join(f"{block:g}" for block in each["block_size"])
        made.append({"parent": name, "best block": f"{mean.idxmax():g}", "by seed": by_seed})
    return pd.DataFrame(made, columns=["parent", "best block", "by seed"])
