"""Efficient-DLM, Figure 2e: how far conversion moves the weights of each layer, per attention pattern."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from analysis.sweep import Point
from dlm.drift import by_layer
from dlm.runs import Run

matplotlib.use("Agg")
KINDS = {"attention": "attention", "ffn": "FFN"}
MEASURES = {"relative": "‖ΔW‖ / ‖W‖", "mean_abs": "mean |ΔW|", "one_minus_cos": "1 − cos"}
# Full training at the one budget, from the pattern that the paper finds to move weights most: colour and marker, so
# that a line is known without its colour.
STYLES = {
    "c": ("#b3402e", "s"),
    "b": ("#d08b4c", "D"),
    "d": ("#7a6bb0", "^"),
    "f": ("#4c9f8f", "v"),
    "g": ("#1f5fa8", "o"),
}


def drift_by_layer(found: list[tuple[Point, Run]]) -> pd.DataFrame:
    """`point, run, seed, layer, kind` and the three measures of `dlm.drift`, averaged over the weights of a layer."""
    tables = [
        by_layer(pd.read_csv(run.folder / "drift.csv")).assign(point=point.name, run=run.id, seed=point.seed)
        for point, run in found
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def figure2e(drift: pd.DataFrame, labels: dict[str, str], measure: str = "relative", stacked: bool = False) -> Figure:
    """Two panels, attention and FFN, beside or (for a narrow page) above each other; one line per point over the
    layers, the mean over its seeds with their range."""
    figure = Figure(figsize=(4.6, 6.6) if stacked else (9, 3.8), layout="constrained")
    panels = figure.subplots(*((2, 1) if stacked else (1, 2)))
    for axes, (kind, name) in zip(panels, KINDS.items(), strict=True):
        for point, (colour, marker) in STYLES.items():
            chosen = drift[(drift["point"] == point) & (drift["kind"] == kind)]
            if chosen.empty:
                continue
            line = chosen.groupby("layer")[measure].agg(["mean", "min", "max"])
            axes.plot(line.index, line["mean"], marker=marker, color=colour, label=f"{point}  {labels[point]}")
            axes.fill_between(line.index, line["min"], line["max"], color=colour, alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel="layer", ylabel=MEASURES[measure])
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.set_xticks(sorted(drift["layer"][drift["layer"] >= 0].unique()))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    handles, names = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower left", ncols=1 if stacked else 2, frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole; the format is the path's suffix."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format=path.suffix[1:], dpi=150, facecolor="white")
    temporary.replace(path)
