"""Accuracy by peak learning rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import by_point, final_evaluation, inner_best
from analysis.evidence.stats import Effect
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table, headings, paper_table
from analysis.pages.plots import lines
from analysis.tables.results import Results

PLACE = 150
TITLE = "Table 7: learning rate"
SWEEPS = ("table7_lr",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEP)).sort_values(["lr", "seed"])
    rows = rows.assign(rate=[f"{v:g}" for v in rows["lr"]], line="here")
    measures = headings("accuracy", "tpf", "nfe", "cloze", "bits_per_byte", "train_flops")
    measures |= {"drift/ffn/relative": "drift, FFN"}
    table = by_point(rows, measures, ("rate",)).rename(columns={"rate": "learning rate"})
    section = paper["table7_learning_rate"]
    theirs = pd.DataFrame(section["rows"], columns=section["columns"])
    fractions = theirs.assign(accuracy=theirs["avg"] / 100, line="paper")
    here, there = (over_rates(each, name) for name, each in (("here", rows), ("paper, 4B", fractions)))
    return [
        Table(table, CELLS, {"TPF": 2, "bits/byte": 3, "drift, FFN": 3, "TFLOP": 2}),
        paper_table(section, "accuracy %, Qwen3-4B, 25B tokens, cosine schedule", {"learning rate": 6, "average": 2}),
        Plot("table7_lr", (here,), "At one token per step.", "Accuracy over learning rate"),
        Plot("table7_lr_paper", (there,), "The paper's averages.", "The paper's accuracy over learning rate"),
    ]


def over_rates(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over the peak learning rate, on a logarithmic axis."""
    figure = lines(rows, "lr", "accuracy", "line", title, "peak learning rate", "accuracy, %", 100)
    figure.axes[0].set_xscale("log")
    return figure


def lr_sweet_spot(results: Results, paper: dict) -> list[Effect]:
    rows = final_evaluation(results.of("evaluations", SWEEP))
    return inner_best(rows, "lr", SWEEP, ("1e-5 − 1e-6: +6.07", "1e-5 − 1e-4: +9.68"))
