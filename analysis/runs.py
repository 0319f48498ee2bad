"""Runs → one tidy table: a row per run, model and decoding setting."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis.sweep import Point
from dlm.runs import Run

ONE_TOKEN = "1 token/step"
MATHS, CODE = ("add", "running_sum", "word_problem"), ("list_eval", "str_eval", "brackets")
DOMAINS = {"maths": MATHS, "code": CODE, "symbols": ("reverse", "sort", "count")}


def tidy(found: Iterable[tuple[Point, Run]]) -> pd.DataFrame:
    """Columns: `point, run, seed, model (parent|dlm), setting, threshold, accuracy` (fraction of items that are
    exact) with its 95 % interval `low, high` over `n` items, the same per domain, `tpf`, `nfe`, `nats` and
    `bits_per_byte` of held-out prose, `cloze`, `tokens` trained on and `drift/<kind>/<measure>`."""
    return pd.DataFrame([row for point, run in found for row in rows_of(point, run)])


def rows_of(point: Point, run: Run) -> Iterable[dict]:
    """The rows of one run."""
    record = run.record
    drift = {f"drift/{name}": value for name, value in record["drift"].items()}
    for model in ("parent", "dlm"):
        measured = record["evaluation"][model]
        for setting in measured["generation"]:
            yield {
                "point": point.name,
                "run": run.id,
                "seed": point.seed,
                "model": model,
                "setting": setting["name"],
                "threshold": setting["threshold"],
                **{name: setting[name] for name in ("accuracy", "low", "high", "n", "tpf", "nfe")},
                **domains(setting["families"]),
                "nats": measured["likelihood"]["nats"],
                "bits_per_byte": measured["likelihood"]["bits_per_byte"],
                "cloze": measured["cloze"],
                "tokens": record["tokens"],
                "train_seconds": record["train_seconds"],
                **(drift if model == "dlm" else {}),
            }


def domains(families: dict[str, dict]) -> dict[str, float]:
    """The mean accuracy over the families of each domain."""
    return {name: sum(families[f]["accuracy"] for f in members) / len(members) for name, members in DOMAINS.items()}


def items(run: Run, setting: str = ONE_TOKEN) -> pd.Series:
    """Whether each item was answered exactly, in the order of the evaluation set (the same for every run)."""
    table = pd.read_csv(run.folder / "items.csv")
    return table.loc[table["setting"] == setting, "correct"].reset_index(drop=True)
