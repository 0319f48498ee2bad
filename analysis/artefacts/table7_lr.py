"""Accuracy by peak learning rate, of the study's optimizer and of the paper's, AdamW."""

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
SWEEPS = ("table7_lr", "table7_adamw")
SWEEP, ADAMW = SWEEPS
DIGITS = {"bits/byte": 3, "drift, FFN": 3, "TFLOP": 2}
BESIDE = "At one token per step. Here and the paper's, each in percent of its own AR parent's accuracy."


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows, adamw = (by_rate(results, sweep) for sweep in SWEEPS)
    section = paper["table7_learning_rate"]
    theirs = pd.DataFrame(section["rows"], columns=section["columns"])
    theirs = theirs.assign(kept=theirs["avg"] / paper["parents"]["qwen3_4b"], line="dLM").sort_values("lr")
    drawn = (("here", rows), ("here, AdamW", adamw), ("paper, 4B", theirs))
    panels = tuple(over_rates(each, name) for name, each in drawn if len(each))
    return [
        Plot("table7_lr", panels, BESIDE, "Accuracy over learning rate, here and the paper's"),
        Table(rate_table(rows), "At one token per step.", DIGITS),
        Table(rate_table(adamw), "At one token per step, with AdamW.", DIGITS),
        paper_table(section, "accuracy %, Qwen3-4B, 25B tokens, cosine schedule", {"learning rate": 6, "average": 2}),
    ]


def by_rate(results: Results, sweep: str) -> pd.DataFrame:
    """The evaluations of a sweep by rising learning rate, with what each keeps of its parent."""
    rows = final_evaluation(results.of("evaluations", sweep))
    rows = rows.sort_values(["lr", "seed"]) if len(rows) else rows
    return with_kept(results, rows.assign(rate=[f"{v:g}" for v in rows["lr"]], line="dLM")) if len(rows) else rows


def rate_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What is measured at each learning rate, as a table."""
    measures = headings("accuracy", "nfe", "cloze", "bits_per_byte", "train_flops")
    measures |= {"drift/ffn/relative": "drift, FFN"}
    return by_point(rows.assign(rate=rows.get("rate")), measures, ("rate",)).rename(columns={"rate": "learning rate"})


def over_rates(rows: pd.DataFrame, title: str) -> Figure:
    """Accuracy over the peak learning rate, on a logarithmic axis."""
    figure = lines(rows, "lr", "kept", "line", title, "peak learning rate", KEPT, 100)
    axes, rates = figure.axes[0], sorted(rows["lr"].unique())
    axes.set(xscale="log", ylim=(0, 105))
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    return figure


def lr_sweet_spot(results: Results, paper: dict) -> list[Effect]:
    rows = final_evaluation(results.of("evaluations", SWEEP))
    effects = sweet_spot(rows, "lr", "learning rate", SWEEP, parent=parent_accuracy(results, SWEEP))
    adamw = final_evaluation(results.of("evaluations", ADAMW))
    others = sweet_spot(adamw, "lr", "learning rate", ADAMW, parent=parent_accuracy(results, ADAMW))
    section = sorted(paper["table7_learning_rate"]["rows"])
    rates, accuracy = (np.array([row[i] for row in section]) for i in (0, -1))
    inner = accuracy[1:-1].mean()
    theirs = {"bend": bend(np.log2(rates)) @ accuracy, "small": inner - accuracy[0], "large": inner - accuracy[-1]}
    facts = {id: {"paper": float(v), "in_paper": f"{v:+.2f}"} for id, v in theirs.items()}
    known = {"paper_parent": paper["parents"]["qwen3_4b"]}
    own = [replace(e, **known, **facts[e.id]) for e in effects]
    return own + [replace(e, what=f"AdamW: {e.what}", id=f"adamw {e.id}", **known, **facts[e.id]) for e in others]
