"""Runs → one tidy table: a row per run, model and decoding setting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from analysis.sweep import Point
from dlm.runs import Run

ONE_TOKEN = "1 token/step"
MATHS, CODE = ("add", "running_sum", "word_problem"), ("list_eval", "str_eval", "brackets")
DOMAINS = {"maths": MATHS, "code": CODE, "symbols": ("reverse", "sort", "count")}
GROUPS = ("model", "data", "attention", "masking", "loss", "trainable", "optimizer")
VALUES = ("block_size", "token_shift", "lr", "seed")
Z95 = 1.959964  # standard errors to either side of a 95 % interval


def tidy(found: Iterable[tuple[Point, Run]]) -> pd.DataFrame:
    """One row per run, model (parent|dlm) and decoding setting.

    `point, run`, the choices of its config (`GROUPS`, `VALUES`) and `tokens` trained on; then `setting, threshold`,
    `tpf` (tokens per forward) and `nfe` (forwards per answer). A measure `m` has the columns `m, m_low, m_high` (95 %)
    and `m_n`: `accuracy` and that of each domain in `DOMAINS` (fraction of items that are exact; Wilson), `cloze`
    (fraction right; Wilson) and `bits_per_byte` of held-out prose (normal, over rows; n in tokens). At the end the
    weight change as `drift/<kind>/<measure>`, of the dLM only.
    """
    return pd.DataFrame([row for point, run in found for row in rows_of(point, run)])


def rows_of(point: Point, run: Run) -> Iterable[dict[str, Any]]:
    """The rows of one run."""
    record = run.record
    choices = {group: record["choices"].get(group) for group in GROUPS}
    choices |= {key: record["config"][key] for key in VALUES}
    drift = {f"drift/{name}": value for name, value in record["drift"].items()}
    for model in ("parent", "dlm"):
        measured = record["evaluation"][model]
        for setting in measured["generation"]:
            yield {
                "point": point.name,
                "run": run.id,
                **choices,
                "tokens": record["tokens"],
                "train_seconds": record["train_seconds"],
                "model": model,
                "setting": setting["name"],
                **{name: setting[name] for name in ("threshold", "tpf", "nfe")},
                **columns("accuracy", *(setting[name] for name in ("accuracy", "low", "high", "n"))),
                **domains(setting["families"]),
                **proportion("cloze", measured["cloze"], measured["cloze_items"]),
                **bits_per_byte(measured["likelihood"]),
                **(drift if model == "dlm" else {}),
            }


def columns(name: str, value: float, low: float, high: float, n: int) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_n": n}


def proportion(name: str, value: float, n: int) -> dict[str, float]:
    """A fraction of `n` with Wilson's 95 % interval."""
    interval = binomtest(round(value * n), n).proportion_ci(method="wilson")
    return columns(name, value, interval.low, interval.high, n)


def domains(families: dict[str, dict]) -> dict[str, float]:
    """The accuracy over the items of each domain's families."""
    found: dict[str, float] = {}
    for name, members in DOMAINS.items():
        n = sum(families[f]["n"] for f in members)
        found |= proportion(name, sum(families[f]["accuracy"] * families[f]["n"] for f in members) / n, n)
    return found


def bits_per_byte(likelihood: dict[str, float]) -> dict[str, float]:
    """The likelihood of held-out prose; its standard error is recorded in nats, and the two are proportional."""
    value = likelihood["bits_per_byte"]
    half = Z95 * likelihood["standard_error"] * value / likelihood["nats"]
    return columns("bits_per_byte", value, value - half, value + half, likelihood["tokens"])


def items(run: Run, setting: str = ONE_TOKEN) -> pd.DataFrame:
    """`family, correct` of every item, in the order of the evaluation set (the same for every run)."""
    table = pd.read_csv(run.folder / "items.csv")
    return table.loc[table["setting"] == setting, ["family", "correct"]].reset_index(drop=True)
