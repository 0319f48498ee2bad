"""Accuracy and throughput by batch size, beside the AR parent's."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.plots import frontier
from analysis.tables.results import PARENT, Results

PLACE = 140
TITLE = "Figure 11: batch size"
TOPIC = "decoding"
SWEEPS = ("table3_family",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEP)
    rows = rows[rows["evaluation"].isin(["ar", "dlm"]) & (rows["point"] == "parent=middle")]
    rows = rows.sort_values(["batch_size", "model", "nfe"])
    rows = rows.assign(model=["AR parent" if m == PARENT else "dLM" for m in rows["model"]])
    rows = rows.assign(line=[f"{m}, batch {b:g}" for m, b in zip(rows["model"], rows["batch_size"], strict=True)])
    measures = headings("accuracy", "tpf", "nfe", "tokens_per_second")
    table = by_point(rows, measures, ("batch_size", "model", "threshold")).rename(columns={"batch_size": "batch"})
    panel = frontier(rows, "tokens_per_second", "line", "threshold", "", "tokens/s")
    caption = "Tokens per second of the whole batch; each line is a model at a batch size through its thresholds."
    return [
        Plot("figure11_batch", (panel,), caption, "Accuracy against throughput by batch size"),
        Table(
            table.sort_values(["batch", "model"], kind="stable"),
            "The AR parent is one model, measured beside every run: its answers do not differ by seed.",
            {"TPF": 2, "tokens/s": 0, "threshold": 2},
            aside=True,
        ),
        Table(speedup(rows), "Tokens/s of the dLM over the AR parent's at the same batch size.", 2),
    ]


def speedup(rows: pd.DataFrame) -> pd.DataFrame:
    """Batch size × threshold: the dLM's throughput in units of its parent's."""
    rate = rows.groupby(["batch_size", "model", "threshold"])["tokens_per_second"].mean()
    if rate.empty or not {"AR parent", "dLM"} <= set(rate.index.get_level_values("model")):
        return pd.DataFrame()
    dlm, parent = (rate.xs(model, level="model") for model in ("dLM", "AR parent"))
    ratio = dlm.unstack().div(parent.groupby("batch_size").mean(), axis=0)
    ratio.columns = [f"threshold {t:g}" for t in ratio.columns]
    return ratio.rename_axis("batch").reset_index().astype({"batch": int})
