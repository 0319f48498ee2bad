"""The drift of every layer over the course of training, as one picture."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dlm.logger.base import Picture

OUTSIDE = "outside the layers"


def heat_map(history: pd.DataFrame, measure: str = "relative") -> Picture:
    """A panel for every kind of weights, with a row for every layer and a column for every measurement, in one scale
    of colour. What lies outside the layers has a panel with a row for every kind. `history` has the columns `tokens`,
    `layer` (-1 outside), `kind` and the measure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only runs that are logged wait for matplotlib
    from matplotlib.figure import Figure

    inside = history["layer"] >= 0
    panels = {
        kind: part.pivot(index="layer", columns="tokens", values=measure)
        for kind, part in history[inside].groupby("kind")
    }
    if not inside.all():
        panels[OUTSIDE] = history[~inside].pivot(index="kind", columns="tokens", values=measure)
    heights = [max(len(panel), 2) for panel in panels.values()]
    height = 1 + 0.5 * len(panels) + min(0.22 * sum(heights), 8)  # inches, also of a model with many layers
    figure = Figure(figsize=(7, height), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(panel.to_numpy(), aspect="auto", vmin=0, vmax=history[measure].max() or 1, cmap="viridis")
        ax.set_title(name if name == OUTSIDE else f"{name}, by layer", fontsize=9)
        rows = range(0, len(panel), 1 if name == OUTSIDE else max(1, len(panel) // 12))
        ax.set_yticks(rows, [panel.index[row] for row in rows], fontsize=7)
    columns = range(0, panel.shape[1], max(1, panel.shape[1] // 8))
    axes[-1].set_xticks(columns, [count(panel.columns[column]) for column in columns], fontsize=7)
    axes[-1].set_xlabel("tokens of training", fontsize=8)
    figure.colorbar(image, ax=list(axes), label="‖W − W₀‖ / ‖W₀‖" if measure == "relative" else measure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def count(number: float) -> str:
    """A number of tokens in three digits: 950, 12.3k, 1.5M, 50G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
