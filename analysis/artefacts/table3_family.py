"""The embedded family: AR models of several sizes, and the dLM at several thresholds."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import by_point
from analysis.pages.exhibits import CELLS, Exhibit, Plot, Table, headings, paper_table
from analysis.pages.plots import finish, frontier, panel
from analysis.tables.results import DLM, PARENT, Results

PLACE = 100
TITLE = "Table 3 and Figure 9: accuracy, tokens per forward and tokens per second"
SWEEPS = ("table3_family",)
SWEEP = SWEEPS[0]
DIGITS = {"TPF": 2, "threshold": 2, "tokens/s": 0, "bits/byte": 3, "parameters": 0}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = family(results)
    measures = headings(
        "accuracy", "tpf", "nfe", "tokens_per_second", "code", "maths", "symbols", "cloze", "bits_per_byte"
    )
    table = by_point(rows, measures, ("type", "name", "threshold")).rename(columns={"name": "model"})
    theirs = pd.DataFrame(paper["table3_family"]["rows"], columns=paper["table3_family"]["columns"])
    ours = frontier(rows, "tokens_per_second", "name", "threshold", "here", "tokens/s, batch 1")
    return [
        Table(
            table,
            f"Tokens/s at batch 1 on the machine of the run. The parents differ in more than their size. {CELLS}",
            DIGITS,
        ),
        paper_table(paper["table3_family"], "12 tasks, accuracy %; tokens/s on one H100 at batch 1"),
        Plot("figure9_frontier", (ours,), SAID, "Accuracy against tokens per second"),
        Plot("figure9_frontier_paper", (frontier_of_paper(theirs),), PAPERS, "The same of the paper's models"),
    ]


PAPERS = "The paper's Figure 9, from the numbers of its Table 3."
SAID = "Figure 9: accuracy against throughput; a dLM's points are its decoding settings, mean over seeds."


def family(results: Results, batch: int = 1) -> pd.DataFrame:
    """Rows of every dLM at every threshold and of each parent once, with the likelihoods of the final evaluation."""
    rows = results.of("evaluations", SWEEP)
    likelihood = rows[rows["evaluation"] == ""].drop_duplicates(["run", "model"])
    likelihood = likelihood[["run", "model", *(c for c in rows.columns if c.startswith(("cloze", "bits_per_byte")))]]
    rows = rows[rows["evaluation"].isin(["ar", "dlm"]) & (rows["batch_size"] == batch)]
    rows = rows.drop(columns=likelihood.columns[2:]).merge(likelihood, on=["run", "model"], how="left")
    parents = rows[rows["model"] == PARENT].drop_duplicates("parent").assign(type="AR")
    parents = parents.assign(name=[f"AR {size(n)}" for n in parents["parameters"]])
    dlms = rows[rows["model"] == DLM].assign(type="dLM")
    dlms = dlms.assign(name=[f"dLM {size(n)}" for n in dlms["parameters"]])
    return pd.concat([parents, dlms]).sort_values(["type", "parameters", "nfe"], ascending=[True, True, False])


def size(parameters: float) -> str:
    """A number of parameters as text, in millions or billions."""
    return f"{parameters / 1e6:.3g}M" if parameters < 1e9 else f"{parameters / 1e9:.3g}B"


def frontier_of_paper(family: pd.DataFrame) -> Figure:
    """The paper's Figure 9 from the numbers of its Table 3."""
    figure, axes = panel("paper", "tokens/s, H100, batch 1", "average accuracy, %")
    for kind, marker, colour in (("ar", "s", "#d9762b"), ("dlm", "o", "#2f7fc1")):
        models = family[family["type"] == kind]
        axes.scatter(models["tps"], models["avg"], marker=marker, color=colour, s=18, label=kind)
    finish(figure, axes, 2)
    return figure
