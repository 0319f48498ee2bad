"""From the bidirectional dLM to the full recipe, one step at a time."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import SOMETIMES, by_point, final_evaluation, parent_row
from analysis.evidence.kept import KEPT, kept
from analysis.evidence.stats import estimate
from analysis.pages.dots import Dot, dots
from analysis.pages.exhibits import Exhibit, Plot, Table, headings, paper_table
from analysis.tables.results import Results

PLACE = 120
TITLE = "Table 5: the ladder"
TOPIC = "recipes"
SWEEPS = ("table5_ladder",)
SWEEP = SWEEPS[0]
RUNGS = ("bidir", "block", "no_shift", "position", "tokens")  # in the order of the paper's rows
DIGITS = {"bits/byte": 3, "TFLOP": 2}
BESIDE = "Each rung adds one choice. Here and the paper's, each in percent of its own AR parent's accuracy."


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    measures = headings("accuracy", "nfe", *SOMETIMES, "cloze", "bits_per_byte", "train_flops")
    rows = final_evaluation(results.of("evaluations", SWEEP))
    parent = parent_row(results, SWEEP).assign(label="AR parent")
    table = by_point(pd.concat([parent, rows]) if len(rows) else rows, measures, ("label",))
    theirs = dict(zip(RUNGS, (row[-1] for row in paper["table5_ladder"]["rows"]), strict=True))
    ours = {rung: estimate(group, "accuracy", 100) for rung, group in rows.groupby("point")} if len(rows) else {}
    above = estimate(parent, "accuracy", 100)
    dots_of = [
        Dot(label, label, kept(ours[rung], above), 100 * theirs[rung] / paper["parents"]["qwen3_4b"])
        for rung, label in dict(rows[["point", "label"]].values.tolist()).items()
        if rung in theirs
    ]
    figures = (dots(dots_of, "", KEPT, 100.0),) if dots_of and above else ()
    return [
        Plot(
            "table5_ladder",
            figures,
            BESIDE,
            "Accuracy kept of the parent's by rung of the ladder, here and the paper's",
        ),
        Table(table.rename(columns={"label": "setting"}), "At one token per step.", DIGITS),
        paper_table(paper["table5_ladder"], "accuracy %, Qwen3-4B"),
    ]
