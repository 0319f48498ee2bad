"""The kinds of panels that artefacts use. Each function returns one figure, as wide as a phone's screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.pages.render import STYLE

SIZE = (4.4, 3.5)
# A line has its own colour and marker, to be told apart without colour; mid-tones show on light and dark pages.
COLOURS = ("#2f7fc1", "#d9762b", "#2f9e6e", "#c4529a", "#8a6fd1", "#b8951f", "#4aa3b5", "#d1495b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def panel(title: str, x: str, y: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """An empty panel in the report's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(axis="y", alpha=0.25)
    return figure, axes


def lines(
    rows: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    scale: float = 1.0,
    log: bool = False,
    order: Sequence[Any] | None = None,
) -> Figure:
    """One line per value of `by`: the mean of `y` over the rows with the same `x`, with a band for their range.

    `order` fixes the values of `by` and their colours; `log` is a logarithmic (base 2) x-axis.
    """
    figure, axes = panel(title, xlabel or x, ylabel or y)
    present = list(rows[by].dropna().unique())
    names = present if order is None else [name for name in order if name in present]
    for name in names:
        i = (order or names).index(name)  # with an order, a name keeps its colour if others are absent
        of_name = rows[(rows[by] == name)].dropna(subset=[x, y])
        line = of_name.groupby(x)[y].agg(["mean", "min", "max"]) * scale
        draw(axes, i, line.index, line["mean"], str(name))
        axes.fill_between(line.index, line["min"], line["max"], color=colour(i), alpha=0.15, linewidth=0)
    finish(figure, axes, len(names), log)
    return figure


def frontier(
    rows: pd.DataFrame, x: str, by: str, setting: str, title: str = "", xlabel: str = "", ylabel: str = "accuracy, %"
) -> Figure:
    """Accuracy against the cost `x`: one line per value of `by` through the means over seeds of its settings."""
    figure, axes = panel(title, xlabel or x, ylabel)
    names = list(rows[by].dropna().unique())
    for i, name in enumerate(names):
        of_name = rows[rows[by] == name]
        line = of_name.groupby(setting, dropna=False)[[x, "accuracy"]].mean().sort_values(x).dropna()
        draw(axes, i, line[x], 100 * line["accuracy"], str(name))
    finish(figure, axes, len(names))
    return figure


def trade_off(points: pd.DataFrame, x: str, best: str, title: str, xlabel: str) -> Figure:
    """Accuracy against the cost or speed `x`: one line per `name` through its points, whose values are `Estimate`s.

    Lines with a `best` point (drawn filled) and baselines are coloured, the others grey; `best` is a boolean column.
    """
    figure, axes = panel(title, xlabel, "accuracy, %", (4.4, 4.6))
    points = points[points[x].notna()]
    means = points.assign(x=[v.mean for v in points[x]], y=[v.mean for v in points["accuracy %"]])
    named = 0
    for name, line in means.sort_values("x").groupby("name", sort=False):
        if not (line[best].any() or line["baseline"].any()):
            axes.plot(line["x"], line["y"], marker=".", markersize=3, linewidth=0.6, color="#808890", alpha=0.5)
            continue
        hue, marker = colour(named), MARKERS[(named + named // len(COLOURS)) % len(MARKERS)]
        style = "--" if line["baseline"].any() else "-"
        axes.plot(line["x"], line["y"], style, marker=marker, fillstyle="none", markersize=5, color=hue, label=name)
        axes.plot(line["x"][line[best]], line["y"][line[best]], marker, markersize=5, color=hue)
        for at, value in zip(line["x"], line["accuracy %"], strict=True):
            axes.plot([at, at], [value.low, value.high], color=hue, linewidth=0.8, alpha=0.6)
        named += 1
    finish(figure, axes, named)
    return figure


def heat_map(values: pd.DataFrame, title: str, xlabel: str, ylabel: str, digits: int = 1) -> Figure:
    """`values` as coloured cells with their numbers; NaN cells stay empty."""
    figure, axes = panel(title, xlabel, ylabel, (4.4, 0.42 * len(values) + 1.2))
    grid = values.to_numpy(dtype=float)
    low, high = np.nanmin(grid), np.nanmax(grid)
    axes.imshow(np.ma.masked_invalid(grid), cmap="viridis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            bright = value > low + 0.6 * (high - low)
            axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color="#000000" if bright else "#ffffff")
    axes.set_xticks(range(values.shape[1]), [str(c) for c in values.columns])
    axes.set_yticks(range(values.shape[0]), [str(c) for c in values.index])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def bars(labels: Sequence[str], effects: Sequence[tuple[float, float, float]], title: str, xlabel: str) -> Figure:
    """Effects (mean, low, high) as points with intervals around a line at 0, the first on top."""
    figure, axes = panel(title, xlabel, "", (4.4, 0.34 * len(labels) + 1.0))
    for i, (mean, low, high) in enumerate(effects):
        axes.plot([low, high], [i, i], color=colour(0), linewidth=1.6)
        axes.plot([mean], [i], marker="o", color=colour(0))
    axes.axvline(0, color="#808890", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    return figure


def draw(axes: Axes, i: int, x: Any, y: Any, label: str) -> None:
    """Draw the line number `i` of a panel in its colour and marker."""
    axes.plot(x, y, marker=MARKERS[i % len(MARKERS)], markersize=4.5, color=colour(i), label=label)


def colour(i: int) -> str:
    """The colour of line number `i`; colours repeat."""
    return COLOURS[i % len(COLOURS)]


def finish(figure: Figure, axes: Axes, names: int, log: bool = False) -> None:
    """Add the legend (unless `names`, the number of its entries, is 0) and the ticks of the x-axis."""
    if log:
        axes.set_xscale("log", base=2)
        ticks = sorted({float(v) for line in axes.lines for v in line.get_xdata()})
        axes.set_xticks(ticks, [short(t) for t in ticks])
        axes.minorticks_off()
    elif all(float(v).is_integer() for line in axes.lines for v in line.get_xdata()):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if names:
        with matplotlib.rc_context(STYLE):
            longest = max(len(str(text)) for text in axes.get_legend_handles_labels()[1])
            figure.legend(loc="outside lower left", ncols=max(1, min(4, 56 // (longest + 8))))


def short(value: float) -> str:
    """A number with three significant digits: 251k for 250,880, 2M for 2,000,896."""
    return EngFormatter(sep="")(float(f"{value:.3g}"))
