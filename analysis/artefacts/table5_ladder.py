"""From the bidirectional dLM to the full recipe, one step at a time."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point, final_evaluation, parent_row
from analysis.pages.exhibits import CELLS, Exhibit, Table, headings, paper_table
from analysis.tables.results import Results

PLACE = 120
TITLE = "Table 5: the ladder"
SWEEPS = ("table5_ladder",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    measures = headings("accuracy", "tpf", "nfe", "code", "maths", "symbols", "cloze", "bits_per_byte", "train_flops")
    rows = final_evaluation(results.of("evaluations", SWEEP))
    parent = parent_row(results, SWEEP).assign(label="AR parent")
    table = by_point(pd.concat([parent, rows]) if len(rows) else rows, measures, ("label",))
    return [
        Table(table.rename(columns={"label": "setting"}), CELLS, {"TPF": 2, "bits/byte": 3, "TFLOP": 2}),
        paper_table(paper["table5_ladder"], "accuracy %, Qwen3-4B"),
    ]
