"""Provenance of the results: amount of training, machine, code, failed runs, and caveats for the reader."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.results import Results

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
# Columns of the runs in an artefact's setting → their names there.
VARIED = {
    "parameters": "parameters",
    "tokens": "tokens",
    "block_size": "block size",
    "lr": "learning rate",
    "masking_name": "masking",
    "batch_size_train": "rows of a batch",
    "length": "tokens of a row",
}


def training_facts(results: Results, sweeps: Iterable[str]) -> list[tuple[str, str]]:
    """(name, value) facts about the distinct runs of sweeps; empty without runs."""
    runs = results.of("runs", list(sweeps)).drop_duplicates("run")
    if runs.empty:
        return []
    flops = runs["train_flops"].astype(float)
    unknown = f", of {flops.notna().sum()} runs" if flops.isna().any() else ""
    facts = [
        ("runs", f"{len(runs)}"),
        ("seeds", ", ".join(f"{s}" for s in sorted(runs["seed"].unique()))),
        ("training tokens", f"{runs['tokens'].sum():,}"),
        ("training FLOPs", quantity(flops.sum(), "FLOP") + unknown),
        ("training time", f"{runs['train_seconds'].sum() / 3600:.2f} h (the machine was shared)"),
    ]
    return [*facts, ("machine", join_texts(runs["machine"]))]


def code_facts(results: Results) -> list[tuple[str, str]]:
    """(name, value) facts about the code that made the runs."""
    return [(name, join_texts(results.runs[name])) for name in ("commit", "versions")] if len(results.runs) else []


def setting_text(results: Results, sweeps: Iterable[str]) -> str:
    """Our setting in one line: the distinct values of every column of `VARIED` over the runs of the sweeps."""
    return "; ".join(settings(results, sweeps).values())


def settings(results: Results, sweeps: Iterable[str]) -> dict[str, str]:
    """Column of `VARIED` → its name and its distinct values over the runs of the sweeps: `block size 4, 8`."""
    runs = results.of("runs", list(sweeps)).drop_duplicates("run")
    return {c: f"{name} {join_values(runs[c])}" for c, name in VARIED.items() if c in runs and runs[c].notna().any()}


def common_setting(results: Results) -> dict[str, str]:
    """Column of `VARIED` → the text of `settings` that most sweeps have."""
    each = [settings(results, [sweep]) for sweep in results.points["sweep"].unique()]
    return {c: pd.Series(texts).mode()[0] for c in VARIED if (texts := [s[c] for s in each if c in s])}


def join_values(column: pd.Series) -> str:
    """The distinct values of a column, sorted and joined by commas."""
    distinct = column.dropna().unique()
    return ", ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in sorted(distinct.tolist()))


def quantity(value: float | None, unit: str) -> str:
    """A number with its SI prefix and unit: 6.37 TFLOP; "–" if missing."""
    if value is None or pd.isna(value):
        return "–"
    power = min(max(int(np.floor(np.log10(value)) // 3), 0), len(PREFIXES) - 1) if value > 0 else 0
    return f"{value / 1000**power:.3g} {PREFIXES[power]}{unit}"


def join_texts(column: pd.Series) -> str:
    """The distinct texts of a column, joined by semicolons; at most five, then the number of the others."""
    distinct = list(dict.fromkeys(column.dropna()))
    return "; ".join(map(str, distinct[:5])) + (f" and {len(distinct) - 5} more" if len(distinct) > 5 else "")


def failed_runs(results: Results) -> list[dict[str, str]]:
    """`run`, `point` and `error` (its last line) of every failed run."""
    rows = results.points[results.points["state"] == "failed"].drop_duplicates("run")
    return [
        {
            "run": r.run,
            "point": f"{r.sweep} {r.point}, seed {r.seed}",
            "error": str(r.error or "").strip().split("\n")[-1],
        }
        for r in rows.itertuples()
    ]


def notes(results: Results) -> list[str]:
    """Caveats for comparing rows: several parents or versions of the code, a single seed."""
    caveats, runs = [], results.runs
    if runs.empty:
        return caveats
    if "source" in runs:
        is_random = runs["source"].str.startswith("random ")  # weights determined by shape and seed
        shape = runs["source"] + " of " + runs["parameters"].astype(str) + ", seed " + runs["seed"].astype(str)
        parents = runs["parent"].groupby(runs["source"].where(~is_random, shape)).nunique()
        for source in parents[parents > 1].index:
            caveats.append(f"The runs from {source} converted {parents[source]} different weights: train all again.")
    commits = sorted(runs["commit"].dropna().unique()) if "commit" in runs else []
    if len(commits) > 1:
        caveats.append(f"The runs were made by {len(commits)} versions of the code, which their commits name.")
    seeds = runs["seed"].nunique()
    if seeds == 1:
        only = runs["seed"].iloc[0]
        caveats.append(f"One seed ({only}): intervals are over items, and what another seed would change is unknown.")
    return caveats


def command(results: Results, sweeps: Sequence[str], runs: Sequence[str], folder: str = "sweeps") -> str:
    """The command that makes the first of `runs` again, as a point of the first of `sweeps` that has it; "" if none.
    The sweeps are files of `folder`."""
    points = results.points[results.points["run"].isin(runs)]
    for sweep in (*sweeps, *points["sweep"]):
        points_of_sweep = points.loc[points["sweep"] == sweep, "point"].unique()
        if len(points_of_sweep):
            names = " ".join(f"--point {shlex.quote(name)}" for name in points_of_sweep)
            return f"python -m analysis.study {folder}/{sweep}.yaml {names}"
    return ""


def sweep_costs(results: Results) -> list[dict[str, Any]]:
    """One row per sweep with finished runs: its name, runs and cost, where its `setting` is not the common one, and its
    points with their runs."""
    common = common_setting(results).items()
    return [
        {
            "sweep": sweep,
            "runs": len(runs),
            "setting": "; ".join(
                text for c, text in settings(results, [sweep]).items() if (c, text) not in common and c != "tokens"
            ),
            "tokens": quantity(runs["tokens"].sum(), ""),
            "flops": quantity(runs["train_flops"].astype(float).sum(), "FLOP"),
            "hours": f"{runs['train_seconds'].sum() / 3600:.2f}",
            "points": points_of(runs),
        }
        for sweep in results.points["sweep"].unique()
        for runs in [results.of("runs", sweep).drop_duplicates("run")]
        if len(runs)
    ]


def points_of(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Every point of one sweep: its `label` and its `runs` (`run`, `seed`, and a `note` with their cost and code)."""
    return [
        {"label": label, "runs": [run_note(run) for run in group.sort_values("seed").to_dict("records")]}
        for label, group in runs.groupby("label", sort=False)
    ]


def run_note(run: dict[str, Any]) -> dict[str, Any]:
    """A run as its id, its seed, and a note for the reader who hovers."""
    cost = f"{run['tokens']:,} tokens, {quantity(run['train_flops'], 'FLOP')}, {run['train_seconds'] / 60:.1f} minutes"
    return {
        "run": run["run"],
        "seed": run["seed"],
        "note": f"{cost}, commit {run['commit'] if isinstance(run['commit'], str) else 'unknown'}",
    }
