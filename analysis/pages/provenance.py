"""What was run: how much, on what, with which code, and what a reader has to know before comparing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.tables.results import Results

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
# What a setting says of the runs of an artefact: column → name.
VARIED = {
    "parameters": "parameters",
    "tokens": "tokens",
    "block_size": "block size",
    "lr": "learning rate",
    "masking_name": "masking",
    "batch_size_train": "rows of a batch",
    "length": "tokens of a row",
}


def ran(results: Results, sweeps: Iterable[str]) -> list[tuple[str, str]]:
    """(what, how much) of the distinct runs of sweeps."""
    runs = results.of("runs", list(sweeps)).drop_duplicates("run")
    if runs.empty:
        return []
    flops = runs["train_flops"].astype(float)
    unknown = f", of {flops.notna().sum()} runs" if flops.isna().any() else ""
    said = [
        ("runs", f"{len(runs)}"),
        ("seeds", ", ".join(f"{s}" for s in sorted(runs["seed"].unique()))),
        ("training tokens", f"{runs['tokens'].sum():,}"),
        ("training FLOPs", quantity(flops.sum(), "FLOP") + unknown),
        ("training time", f"{runs['train_seconds'].sum() / 3600:.2f} h, on a machine that may have done other things"),
    ]
    return [*said, ("machine", listed(runs["machine"]))]


def code(results: Results) -> list[tuple[str, str]]:
    """(what, which) of the code that made the runs."""
    return [(name, listed(results.runs[name])) for name in ("commit", "versions")] if len(results.runs) else []


def setting(results: Results, sweeps: Iterable[str]) -> str:
    """Our setting in one line: what the runs of an artefact have in common, and between what the rest varies."""
    runs = results.of("runs", list(sweeps)).drop_duplicates("run")
    said = [f"{name} {values(runs[c])}" for c, name in VARIED.items() if c in runs and runs[c].notna().any()]
    return "; ".join(said)


def values(column: pd.Series) -> str:
    """The distinct values of a column, in order."""
    found = column.dropna().unique()
    return ", ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in sorted(found.tolist()))


def quantity(value: float | None, unit: str) -> str:
    """A number with its SI prefix: 6.37 TFLOP."""
    if value is None or pd.isna(value):
        return "–"
    power = min(max(int(np.floor(np.log10(value)) // 3), 0), len(PREFIXES) - 1) if value > 0 else 0
    return f"{value / 1000**power:.3g} {PREFIXES[power]}{unit}"


def listed(column: pd.Series) -> str:
    """The distinct texts of a column, at most five of them."""
    found = list(dict.fromkeys(column.dropna()))
    return "; ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


def failed(results: Results) -> list[dict[str, str]]:
    """The runs that failed, with the last line of what they said."""
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
    """What a reader has to know before comparing the rows."""
    said, runs = [], results.runs
    if runs.empty:
        return said
    if "source" in runs:
        drawn = runs["source"].str.startswith("random ")  # weights that a shape and a seed decide
        shape = runs["source"] + " of " + runs["parameters"].astype(str) + ", seed " + runs["seed"].astype(str)
        parents = runs["parent"].groupby(runs["source"].where(~drawn, shape)).nunique()
        for source in parents[parents > 1].index:
            said.append(f"The runs from {source} converted {parents[source]} different weights: train all again.")
    commits = sorted(runs["commit"].dropna().unique()) if "commit" in runs else []
    if len(commits) > 1:
        said.append(f"The runs were made by {len(commits)} versions of the code: {', '.join(commits)}.")
    seeds = runs["seed"].nunique()
    if seeds == 1:
        only = runs["seed"].iloc[0]
        said.append(f"One seed ({only}): intervals are over items, and what another seed would change is unknown.")
    return said
