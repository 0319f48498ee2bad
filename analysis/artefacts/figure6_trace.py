"""In which order a dLM commits the tokens of a block, how sure it is, and what each position costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import scalar_effect, slope_by_seed
from analysis.evidence.stats import Effect
from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.plots import colour, lines, panel
from analysis.tables.results import Results

PLACE = 60
TITLE = "Figure 6: denoising order, confidence and loss within a block"
SWEEPS = ("figure6_trace",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    positions = results.of("positions", SWEEP)
    plots: list[Exhibit] = []
    step, loss = (positions[positions["quantity"] == name] for name in ("step", "loss"))
    if len(step):
        step = step.assign(setting=step["evaluation"].str.replace("_", " "))
        figure = lines(step, "position", "value", "setting", "(a)", "position in the block", "mean step, from 0")
        caption = (
            "(a) The step of its block in which a position is committed, mean over answers; bands: range over seeds."
        )
        plots.append(Plot("figure6a_steps", (figure,), caption, "Mean denoising step over position in the block"))
    steps = results.of("steps", SWEEP)
    if len(steps):
        caption = "(b) One answer: confidence of every masked position in every step; circles are committed tokens."
        plots.append(Plot("figure6b_example", (example(steps),), caption, "Confidence over position and step"))
    if len(loss):
        figure = lines(loss, "position", "value", "model", "(c)", "position in the block", "loss, nats")
        caption = "(c) Mean loss over the position in the block; bands: range over seeds."
        plots.append(Plot("figure6c_loss", (figure,), caption, "Mean loss over position in the block"))
    return plots


def example(steps: pd.DataFrame) -> Figure:
    """Heat map of confidence over position and step of one decoding, preferably one by threshold."""
    last = steps.sort_values("evaluation", kind="stable").iloc[-1]  # "threshold" comes after "one_token"
    trace = steps[(steps["run"] == last["run"]) & (steps["evaluation"] == last["evaluation"])]
    confidence = trace.pivot(index="step", columns="position", values="confidence")
    figure, axes = panel("(b)", "position", "step", (4.4, 3.8))
    image = axes.imshow(np.ma.masked_invalid(confidence.to_numpy(dtype=float)), vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="confidence")
    committed = trace[trace["committed"].astype(bool)]
    columns, rows = list(confidence.columns), list(confidence.index)
    x, y = [columns.index(p) for p in committed["position"]], [rows.index(s) for s in committed["step"]]
    axes.scatter(x, y, s=26, facecolors="none", edgecolors=colour(1), linewidths=1.4)
    tokens = trace.drop_duplicates("position").set_index("position")["token"]
    axes.set_xticks(range(len(columns)), [visible(tokens.get(p, "")) for p in columns], parse_math=False)
    axes.set_yticks(range(len(rows)), [f"{s:g}" for s in rows])
    axes.grid(False)
    return figure


def visible(token: str) -> str:
    """A token's text with visible symbols for white space."""
    return str(token).replace("\n", "↵").replace(" ", "␣")


def denoise_left_to_right(results: Results, paper: dict) -> list[Effect]:
    """Least-squares slopes over the position in the block."""
    positions = results.of("positions", SWEEP)
    effects = []
    for quantity, what, unit in (("step", "step of commitment", " steps"), ("loss", "loss", " nats")):
        of_dlm = positions[(positions["quantity"] == quantity) & (positions["model"] == "dlm")]
        slopes = slope_by_seed(of_dlm, "position", "value")
        comparison = f"{what} per position"
        effects.append(
            scalar_effect(comparison, slopes, of_dlm["run"], "{:+.3f}" + unit, "grows", f"{SWEEP}: {quantity}")
        )
    return effects
