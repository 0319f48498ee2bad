"""Efficient-DLM, Table 1 and the LoRA rows of Table 8: accuracy per attention pattern, beside the paper's."""

from __future__ import annotations

import pandas as pd

from analysis.runs import DOMAINS, ONE_TOKEN
from analysis.sweep import Sweep

CACHED = {"b": "no", "c": "no"}  # whole-canvas denoising has nothing to keep

COLUMNS = ["row", "label", "cache", "accuracy", "interval", "paper", *DOMAINS, "cloze", "bits_per_byte"]
COLUMNS += ["items", "seeds", "tokens", "runs"]


def table1(sweep: Sweep, runs: pd.DataFrame, paper: dict) -> pd.DataFrame:
    """One row per point, row a being the AR parent. Accuracies are in percent at one token per step; `kept` and `paper
    kept` are fractions of the parent's; `interval` is Wilson's over items for one seed, the standard deviation over
    seeds for several. A point without runs says so."""
    rows = [row_of("a", "AR parent", select(runs, "parent"), paper)]
    rows += [row_of(name, label, select(runs, "dlm", name), paper) for name, label in sweep.labels.items()]
    table = pd.DataFrame(rows, columns=COLUMNS)
    for measured, kept in (("accuracy", "kept"), ("paper", "paper kept")):
        table[kept] = table[measured] / table.loc[table["row"] == "a", measured].iloc[0]
    return table


def select(runs: pd.DataFrame, model: str, point: str | None = None) -> pd.DataFrame:
    """The rows of a model at one token per step; the parent's are the same in every run, so one is enough."""
    if runs.empty:
        return runs
    chosen = runs[(runs["model"] == model) & (runs["setting"] == ONE_TOKEN)]
    return chosen.head(1) if point is None else chosen[chosen["point"] == point]


def row_of(name: str, label: str, runs: pd.DataFrame, paper: dict) -> dict:
    """The measurements of one row, averaged over its seeds."""
    row = {"row": name, "label": label, "paper": paper["average"][name], "cache": CACHED.get(name, "yes")}
    if runs.empty:
        return row | {"seeds": 0, "runs": "no finished run"}
    means = {f: 100 * runs[f].mean() for f in ("accuracy", *DOMAINS, "cloze")}
    one = len(runs) == 1
    spread = (100 * runs["low"].iloc[0], 100 * runs["high"].iloc[0]) if one else (100 * runs["accuracy"].std(),)
    return row | means | {
        "interval": "{:.1f} – {:.1f}".format(*spread) if one else "± {:.1f}".format(*spread),
        "bits_per_byte": runs["bits_per_byte"].mean(),
        "items": int(runs["n"].sum()),
        "seeds": len(runs),
        "tokens": 0 if name == "a" else int(runs["tokens"].iloc[0]),
        "runs": ", ".join(runs["run"]) if name != "a" else "measured beside the runs",
    }  # fmt: skip


def parallel_table(sweep: Sweep, runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (percent) and tokens per forward of every point at every decoding setting, averaged over seeds."""
    if runs.empty:
        return runs
    dlm = runs[runs["model"] == "dlm"]
    table = dlm.groupby(["point", "setting"], as_index=False)[["accuracy", "tpf", "nfe", "threshold"]].mean()
    table["accuracy"] *= 100
    return table.assign(label=table["point"].map(sweep.labels))
