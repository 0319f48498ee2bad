"""Values with their intervals one below the other, and the paper's beside them on the same scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from analysis.evidence.effect import Effect
from analysis.evidence.stats import Estimate
from analysis.pages import tips
from analysis.pages.colours import PAPER, PARENT, style
from analysis.pages.plots import panel
from analysis.pages.render import STYLE

LONGEST = 30  # characters of a label's line


@dataclass(frozen=True)
class Dot:
    """A row: its label, the condition whose colour it has, our estimate and the paper's number (None: not there)."""

    label: str
    condition: str
    value: Estimate | None
    paper: float | None = None


def dots(
    rows: Sequence[Dot],
    title: str,
    xlabel: str,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
    digits: int = 1,
    beside: str = "paper",
) -> Figure:
    """One row per dot, the first on top: ours as a point with its interval, the paper's as a grey tick.

    `beside` names the ticks in the legend.
    `reference` is a vertical line: 0 for differences, 100 for percent of the parent. `limits` are those of the x-axis,
    where panels are to be compared.
    """
    height = 0.27 if all(len(row.label) <= LONGEST for row in rows) else 0.36
    width = 2.8 if all(len(row.label) < 4 for row in rows) else 4.4
    figure, axes = panel(title, xlabel, "", (width, height * len(rows) + 1.0))
    for i, row in enumerate(rows):
        if row.paper is not None and not math.isnan(row.paper):
            axes.plot([row.paper], [i], marker="|", markersize=13, markeredgewidth=2.2, color=PAPER, linestyle="none")
        if row.value is not None:
            colour, marker = style(row.condition)
            axes.plot([row.value.low, row.value.high], [i, i], color=colour, linewidth=1.6)
            axes.plot([row.value.mean], [i], marker=marker, color=colour, markersize=6)
            tips.over(axes, row.value.mean, i, tips.of_estimate(row.value, row.label, digits))
    if reference is not None:
        axes.axvline(reference, color=PARENT, linewidth=0.8, linestyle="--" if reference else "-", zorder=0)
    axes.set_yticks(range(len(rows)), [folded(row.label) for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if limits:
        axes.set_xlim(*limits)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.25)
    if any(row.paper is not None for row in rows):
        axes.plot([], [], marker="o", color=PARENT, linestyle="-", label="here, 95% interval")
        axes.plot([], [], marker="|", markersize=11, markeredgewidth=2, color=PAPER, linestyle="none", label=beside)
        with matplotlib.rc_context(STYLE):
            figure.legend(loc="outside lower left", ncols=2)
    return figure


def effects(rows: Sequence[Effect], title: str, xlabel: str, condition: str = "dLM") -> Figure:
    """Differences with their intervals around a line at 0."""
    values = [Estimate(e.value, e.low, e.high, e.seeds, e.items, runs=e.runs) for e in rows]
    return dots([Dot(e.what, condition, v) for e, v in zip(rows, values, strict=True)], title, xlabel, 0.0)


def folded(label: str) -> str:
    """A long label on two lines, broken at the space nearest to its middle."""
    if len(label) <= LONGEST:
        return label
    spaces = [i for i, c in enumerate(label) if c == " "]
    at = min(spaces, key=lambda i: abs(i - len(label) / 2), default=len(label))
    return f"{label[:at]}\n{label[at + 1 :]}"
