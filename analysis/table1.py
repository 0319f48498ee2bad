"""Efficient-DLM, Table 1 and the LoRA rows of Table 8: accuracy per attention pattern, beside the paper's."""

from __future__ import annotations

from typing import Any

import pandas as pd
from hydra.utils import get_class

from analysis.runs import DOMAINS, ONE_TOKEN
from analysis.sweep import Point, Sweep

PERCENT = ("accuracy", *DOMAINS, "cloze")
MEASURED = (*PERCENT, "bits_per_byte")


def table1(sweep: Sweep, runs: pd.DataFrame, paper: dict) -> list[dict[str, Any]]:
    """One row per point, row a being the AR parent.

    A measure of `MEASURED` is `{value, spread, n}`, in percent (`bits_per_byte` apart) at one token per step, averaged
    over seeds; `spread` is the 95 % interval over items for one seed, the standard deviation over seeds for several.
    `kept` and `paper_kept` are fractions of the AR parent's accuracy, `paper_change` the paper's points against it.
    A point without runs has `seeds` 0 and no measure.
    """
    points = {point.name: point for point in reversed(sweep.points)}  # the first seed's
    rows = [{"row": "a", "label": "AR parent", "cache": True} | measures(select(runs, "parent"))]
    rows += [
        {"row": name, "label": label, "cache": cacheable(points[name])} | measures(select(runs, "dlm", name))
        for name, label in sweep.labels.items()
    ]
    if rows[0]["seeds"]:
        rows[0] |= {"seeds": None, "tokens": None, "runs": []}  # measured, not trained
    average = paper["average"]
    for row in rows:
        printed = average[row["row"]]
        row |= {"paper": printed, "paper_kept": printed / average["a"], "paper_change": printed - average["a"]}
        row["kept"] = row["accuracy"]["value"] / rows[0]["accuracy"]["value"] if "accuracy" in row else None
    return rows


def cacheable(point: Point) -> bool:
    """Whether finished blocks keep their keys and values (the paper's column "KV cache")."""
    return get_class(point.config["attention"]["_target_"]).cacheable


def select(runs: pd.DataFrame, model: str, point: str | None = None) -> pd.DataFrame:
    """The rows of a model at one token per step; the parent's are the same in every run, so one is enough."""
    if runs.empty:
        return runs
    chosen = runs[(runs["model"] == model) & (runs["setting"] == ONE_TOKEN)]
    return chosen.head(1) if point is None else chosen[chosen["point"] == point]


def measures(runs: pd.DataFrame) -> dict[str, Any]:
    """The measurements of one row, averaged over its seeds."""
    if runs.empty:
        return {"seeds": 0, "tokens": None, "runs": []}
    found = {name: measure(runs, name, 100 if name in PERCENT else 1) for name in MEASURED}
    return found | {"seeds": len(runs), "tokens": int(runs["tokens"].iloc[0]), "runs": list(runs["run"])}


def measure(runs: pd.DataFrame, name: str, scale: int = 100) -> dict[str, Any]:
    """`value, spread, n` of one measure over the seeds of a row."""
    digits = 1 if scale == 100 else 3
    if len(runs) == 1:
        low, high = (scale * runs[f"{name}_{end}"].iloc[0] for end in ("low", "high"))
        spread = f"{low:.{digits}f} – {high:.{digits}f}"
    else:
        spread = f"± {scale * runs[name].std():.{digits}f}"
    return {"value": scale * runs[name].mean(), "spread": spread, "n": int(runs[f"{name}_n"].iloc[0])}


def parallel_table(sweep: Sweep, runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy (percent, as in `table1`), tokens per forward and forwards per answer of every point at every decoding
    setting, averaged over seeds."""
    if runs.empty:
        return []
    return [
        {"row": point, "label": sweep.labels[point], "setting": setting, "accuracy": measure(group, "accuracy")}
        | {name: group[name].mean() for name in ("threshold", "tpf", "nfe")}
        | {"seeds": len(group), "runs": list(group["run"])}
        for (point, setting), group in runs[runs["model"] == "dlm"].groupby(["point", "setting"])
    ]
