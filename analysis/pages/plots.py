"""Panels with lines and points. Each function returns one figure, as wide as a phone's screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.pages import tips
from analysis.pages.colours import MUTED, style
from analysis.pages.render import STYLE

SIZE = (4.0, 3.1)
MANY = 24  # points of a line from which on it is drawn without markers
TICKS = 6  # most ticks of a logarithmic axis at the values of the points


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

    `by` holds names of conditions, which have their colours. `order` is that of the legend; `log` is a logarithmic
    (base 2) x-axis.
    """
    figure, axes = panel(title, xlabel or x, ylabel or y)
    present = list(rows[by].dropna().unique())
    names = present if order is None else [name for name in order if name in present]
    for name in names:
        of_name = rows[(rows[by] == name)].dropna(subset=[x, y])
        line = of_name.groupby(x)[y].agg(["mean", "min", "max"]) * scale
        heads = {at: tips.of_rows(g, y, f"{name}, {xlabel or x} {short(at)}", scale) for at, g in of_name.groupby(x)}
        draw(axes, line.index, line["mean"], str(name), list(heads.values()))
        axes.fill_between(line.index, line["min"], line["max"], color=style(str(name))[0], alpha=0.15, linewidth=0)
    finish(figure, axes, log)
    return figure


def frontier(
    rows: pd.DataFrame,
    x: str,
    by: str,
    setting: str,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "accuracy, %",
    y: str = "accuracy",
) -> Figure:
    """`y` (a fraction, drawn in percent) against the cost `x`: one line per value of `by` through the means over seeds
    of its settings."""
    figure, axes = panel(title, xlabel or x, ylabel)
    for name in rows[by].dropna().unique():
        of_name = rows[rows[by] == name].dropna(subset=[x, y])
        groups = sorted((g for _, g in of_name.groupby(setting, dropna=False)), key=lambda g: g[x].astype(float).mean())
        heads = [tips.of_rows(g, y, f"{name}, {setting} {g[setting].iloc[0]}", 100) for g in groups]
        at = [g[x].astype(float).mean() for g in groups]
        draw(axes, at, [100 * g[y].astype(float).mean() for g in groups], str(name), heads)
    if y != "accuracy":
        axes.set_ylim(0, 105)  # percent of the parent, from nothing to all
    finish(figure, axes)
    return figure


def trade_off(points: pd.DataFrame, x: str, best: str, title: str, xlabel: str, ylabel: str = "accuracy, %") -> Figure:
    """Accuracy against the cost or speed `x`: one line per `name` through its points, whose values are `Estimate`s.

    Lines with a `best` point (drawn filled) and baselines are coloured, the others grey; `best` is a boolean column.
    """
    figure, axes = panel(title, xlabel, ylabel, (4.0, 4.2))
    points = points[points[x].notna()]
    means = points.assign(x=[v.mean for v in points[x]], y=[v.mean for v in points["accuracy %"]])
    for name, line in means.sort_values("x").groupby("name", sort=False):
        named = line[best].any() or line["baseline"].any()
        colour, marker = style(name) if named else (MUTED, ".")
        dashes, width, alpha = ("--" if line["baseline"].any() else "-"), (1.4 if named else 0.6), (1 if named else 0.5)
        axes.plot(line["x"], line["y"], dashes, linewidth=width, color=colour, alpha=alpha)
        if named:  # the legend's entry
            axes.plot([], [], dashes, marker=marker, fillstyle="none", markersize=5, color=colour, label=name)
        for row in line.to_dict("records"):
            filled, value = "full" if row[best] else "none", row["accuracy %"]
            size = 5 if named else 3
            axes.plot([row["x"]], [row["y"]], marker, fillstyle=filled, markersize=size, color=colour)
            tips.over(
                axes, row["x"], row["y"], tips.of_estimate(value, f"{name}, {row['setting']}, {x} {row['x']:.3g}")
            )
            if named:
                axes.plot([row["x"]] * 2, [value.low, value.high], color=colour, linewidth=0.8, alpha=0.6)
    finish(figure, axes)
    return figure


def draw(axes: Axes, x: Any, y: Any, label: str, heads: Sequence[str] = ()) -> None:
    """Draw the line of a condition in its colour and marker, with `heads` as the tips of its points."""
    colour, marker = style(label)
    if len(x) >= MANY:
        (line,) = axes.plot(x, y, color=colour, label=label, linewidth=1.2)
        tips.put(line, "\n".join([label, *tips.of_runs(r for head in heads for r in tips.runs_in(head))]))
        return
    axes.plot(x, y, marker=marker, markersize=4.5, color=colour, label=label)
    for at, value, head in zip(x, y, heads, strict=False):
        tips.over(axes, at, value, head)


def align(panels: Sequence[Figure]) -> None:
    """Give panels that are read side by side the same axes."""
    each = [figure.axes[0] for figure in panels]
    for limits, name in ((Axes.get_xlim, "xlim"), (Axes.get_ylim, "ylim")):
        ends = [limits(axes) for axes in each]
        for axes in each:
            axes.set(**{name: (min(low for low, _ in ends), max(high for _, high in ends))})


def finish(figure: Figure, axes: Axes, log: bool = False) -> None:
    """Add the legend of what is labelled, and the ticks of the x-axis."""
    values = sorted({float(v) for line in axes.lines for v in line.get_xdata()})
    if log:
        axes.set_xscale("log", base=2)
        step = max(1, -(-len(values) // TICKS))
        axes.set_xticks(values[::step], [short(t) for t in values[::step]])
        axes.minorticks_off()
    elif values and values[-1] >= 10_000:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif all(v.is_integer() for v in values):
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        with matplotlib.rc_context(STYLE):
            columns = max(1, min(4, 52 // (max(len(text) for text in labels) + 8)))
            figure.legend(loc="outside lower left", ncols=columns)
        more = -(-len(labels) // columns) - 2  # rows of the legend beyond those that a panel has room for
        figure.set_figheight(figure.get_figheight() + 0.18 * max(0, more))


def short(value: float) -> str:
    """A number with three significant digits: 251k for 250,880, 2M for 2,000,896, and small ones as they are."""
    return EngFormatter(sep="")(float(f"{value:.3g}")) if abs(value) >= 1000 else f"{value:.3g}"
