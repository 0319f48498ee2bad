"""Panels made of cells: heat maps, and the attention patterns."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from analysis.pages import tips
from analysis.pages.plots import panel
from analysis.pages.render import STYLE
from analysis.site import mask_pictures
from dlm.attention.base import AttentionPattern

MAP = matplotlib.colormaps["viridis"]


def heat_map(
    values: pd.DataFrame,
    title: str,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float],
    digits: int = 0,
    notes: Mapping[tuple[str, str], str] | None = None,
) -> Figure:
    """`values` as coloured cells with their numbers, on the colour scale from `limits[0]` to `limits[1]`.

    NaN cells stay empty. Cells whose row and column have the same name are framed. `notes` are tips by (row, column).
    """
    figure, axes = panel(title, xlabel, ylabel, (3.6, 0.4 * len(values) + 1.0))
    low, high = limits
    for (i, j), value in np.ndenumerate(values.to_numpy(dtype=float)):
        row, column = str(values.index[i]), str(values.columns[j])
        if np.isnan(value):
            continue
        share = min(1.0, max(0.0, (value - low) / (high - low)))
        frame = {"edgecolor": "#ff6f3c", "linewidth": 1.8, "zorder": 3} if row == column else {"linewidth": 0}
        cell = axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=MAP(share), **frame))
        tips.put(cell, (notes or {}).get((row, column), f"{ylabel} {row}, {xlabel} {column}: {value:.{digits}f}"))
        ink = "#000000" if share > 0.6 else "#ffffff"
        axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", color=ink, zorder=4)
    axes.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5))
    axes.set_xticks(range(values.shape[1]), [str(c) for c in values.columns])
    axes.set_yticks(range(values.shape[0]), [str(c) for c in values.index])
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def mask(pattern: AttentionPattern, title: str) -> Figure:
    """Who sees whom under an attention pattern in training, from its own predicate: a row sees the coloured columns."""
    rows = mask_pictures.streams(pattern)
    sees, clean = mask_pictures.visible(pattern, rows).tolist(), rows.clean.tolist()
    size, unit = len(clean), mask_pictures.LENGTH
    figure, axes = panel(title, "", "", (2.7, 3.7))
    kinds = set()
    for row, column, width in mask_pictures.runs_of(sees, clean):
        kind = (clean[row], clean[column])
        kinds.add(kind)
        axes.add_patch(Rectangle((column, row), width, 1, color=mask_pictures.KINDS[kind][1], linewidth=0.3))
    for at in range(0, size + 1, mask_pictures.BLOCK):
        edge = {"color": "#808890", "linewidth": 1.2 if at % unit == 0 else 0.5, "alpha": 1 if at % unit == 0 else 0.6}
        axes.plot([0, size], [at, at], **edge)
        axes.plot([at, at], [0, size], **edge)
    names = list(mask_pictures.streams_of(clean))
    axes.set_xticks([start + unit / 2 for _, start in names], [name for name, _ in names])
    axes.set_yticks([start + unit / 2 for _, start in names], [name for name, _ in names], rotation=90, va="center")
    axes.set(xlim=(-0.2, size + 0.2), ylim=(size + 0.2, -0.2), aspect="equal")
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    with matplotlib.rc_context(STYLE):
        swatches = [Patch(color=mask_pictures.KINDS[kind][1], label=mask_pictures.KINDS[kind][0]) for kind in kinds]
        figure.legend(handles=sorted(swatches, key=lambda s: s.get_label()), loc="outside lower left", ncols=1)
    return figure
