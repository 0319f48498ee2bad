"""Accuracy by peak learning rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import by_point, final_evaluation, parent_accuracy
from analysis.evidence.contrasts import bend, sweet_spot
from analysis.evidence.effect import Effect
from analysis.evidence.kept import KEPT, with_kept
from analysis.pages.exhibits import Exhibit, Plot, Table, headings, paper_table
from analysis.pages.plots import lines
from analysis.tables.results import Results

PLACE = 150
TITLE = "Table 7: learning rate"
TOPIC = "training"
SWEEPS = ("table7_lr",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEP)).sort_values(["lr", "seed"])
    rows = with_kept(results, rows.assign(rate=[f"{v:g}" for v in rows["lr"]], line="dLM"))
    measures = headings("accuracy", "nfe", "cloze", "bits_per_byte", "train_flops")
    measures |= {"drift/ffn/relative": "drift, FFN"}
    table = by_point(rows, measures, ("rate",)).rename(columns={"rate": "learning rate"})
    section = paper["table7_learning_rate"]
    theirs = pd.DataFrame(section["rows"], columns=section["columns"])
    theirs = theirs.assign(kept=theirs["avg"] / paper["parents"]["qwen3_4b"], line="dLM").sort_values("lr")
    panels = tuple(over_rates(each, name) for name, each in (("here", rows), ("paper, 4B", theirs)))
    return [
        Plot("table7_lr", panels, BESIDE, "Accuracy over learning rate, here and the paper's"),
        Table(table, "At one token per step.", {"bits/byte": 3, "drift, FFN": 3, "TFLOP": 2}),
        paper_table(section, "accuracy %, Qwen3-4B, 25B tokens, cosine schedule", {"learning rate": 6, "average": 2}),
    ]


BESIDE = "At one token per step. Here and the paper's, each in percent of its own AR parent's accuracy."


def over_rates(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over the peak learning rate, on a logarithmic axis."""
    figure = lines(rows, "lr", "kept", "line", title, "peak learning rate", KEPT, 100)
    figure.axes[0].set(xscale="log", ylim=(0, 105))
    return figure


def lr_sweet_spot(results: Results, paper: dict) -> list[Effect]:
    rows = final_evaluation(results.of("evaluations", SWEEP))
    effects = sweet_spot(rows, "lr", "learning rate", SWEEP, parent=parent_accuracy(results, SWEEP))
    section = sorted(paper["table7_learning_rate"]["rows"])
    rates, accuracy = (np.array([row[i] for row in section]) for i in (0, -1))
    inner = accuracy[1:-1].mean()
    theirs = {"bend": bend(np.log2(rates)) @ accuracy, "small": inner - accuracy[0], "large": inner - accuracy[-1]}
    facts = {id: {"paper": float(v), "in_paper": f"{v:+.2f}"} for id, v in theirs.items()}
    return [replace(e, paper_parent=paper["parents"]["qwen3_4b"], **facts[e.id]) for e in effects]
