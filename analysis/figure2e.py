"""Efficient-DLM, Figure 2e: how far conversion moves the weights of each layer, per attention pattern."""

from __future__ import annotations

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
POINTS = ("c", "b", "d", "f", "g")  # full training at the one budget
COLOURS = {"b": "#d08b4c", "c": "#b3402e", "d": "#7a6bb0", "f": "#4c9f8f", "g": "#1f5fa8"}


def drift_by_layer(found: list[tuple[Point, Run]]) -> pd.DataFrame:
    """`point, seed, layer, kind` and the three measures of `dlm.drift`, averaged over the weights of a layer."""
    tables = [by_layer(pd.read_csv(run.folder / "drift.csv")).assign(point=p.name, seed=p.seed) for p, run in found]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def figure2e(drift: pd.DataFrame, labels: dict[str, str], measure: str = "relative") -> Figure:
    """Two panels, attention and FFN; one line per point over the layers, the mean over its seeds."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (kind, name) in zip(figure.subplots(1, 2), KINDS.items(), strict=True):
        for point in POINTS:
            chosen = drift[(drift["point"] == point) & (drift["kind"] == kind)]
            if len(chosen):
                line = chosen.groupby("layer")[measure].mean()
                axes.plot(line.index, line, marker="o", color=COLOURS[point], label=f"{point}  {labels[point]}")
        axes.set(title=name, xlabel="layer", ylabel=MEASURES[measure], ylim=(0, None))
        axes.set_xticks(sorted(drift["layer"][drift["layer"] >= 0].unique()))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole; the format is the path's suffix."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format=path.suffix[1:], dpi=150, facecolor="white", metadata={"Date": None})
    temporary.replace(path)
