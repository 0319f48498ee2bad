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
    found = results.of("positions", SWEEP)
    made: list[Exhibit] = []
    step, loss = (found[found["quantity"] == name] for name in ("step", "loss"))
    if len(step):
        step = step.assign(setting=step["evaluation"].str.replace("_", " "))
        figure = lines(step, "position", "value", "setting", "(a)", "position in the block", "mean step, from 0")
        said = "(a) The step of its block in which a position is committed, mean over answers; bands: range over seeds."
        made.append(Plot("figure6a_steps", (figure,), said, "Mean denoising step over position in the block"))
    steps = results.of("steps", SWEEP)
    if len(steps):
        said = "(b) One answer: confidence of every masked position in every step; circles are committed tokens."
        made.append(Plot("figure6b_example", (example(steps),), said, "Confidence over position and step"))
    if len(loss):
        figure = lines(loss, "position", "value", "model", "(c)", "position in the block", "loss, nats")
        said = "(c) Mean loss over the position in the block; bands: range over seeds."
        made.append(Plot("figure6c_loss", (figure,), said, "Mean loss over position in the block"))
    return made


def example(steps: pd.DataFrame) -> Figure:
    """Confidence over position and step of one run, decoded by a threshold if there is such a trace."""
    last = steps.sort_values("evaluation", kind="stable").iloc[-1]  # "threshold" comes after "one_token"
    one = steps[(steps["run"] == last["run"]) & (steps["evaluation"] == last["evaluation"])]
    confidence = one.pivot(index="step", columns="position", values="confidence")
    figure, axes = panel("(b)", "position", "step", (4.4, 3.8))
    shown = axes.imshow(np.ma.masked_invalid(confidence.to_numpy(dtype=float)), vmin=0, vmax=1, aspect="auto")
    figure.colorbar(shown, ax=axes, label="confidence")
    committed = one[one["committed"].astype(bool)]
    columns, rows = list(confidence.columns), list(confidence.index)
    x, y = [columns.index(p) for p in committed["position"]], [rows.index(s) for s in committed["step"]]
    axes.scatter(x, y, s=26, facecolors="none", edgecolors=colour(1), linewidths=1.4)
    names = one.drop_duplicates("position").set_index("position")["token"]
    axes.set_xticks(range(len(columns)), [visible(names.get(p, "")) for p in columns], parse_math=False)
    axes.set_yticks(range(len(rows)), [f"{s:g}" for s in rows])
    axes.grid(False)
    return figure


def visible(token: str) -> str:
    """A token's text with its white space shown."""
    return str(token).replace("\n", "↵").replace(" ", "␣")


def denoise_left_to_right(results: Results, paper: dict) -> list[Effect]:
    """Least-squares slopes over the position in the block."""
    found = results.of("positions", SWEEP)
    made = []
    for quantity, what, unit in (("step", "step of commitment", " steps"), ("loss", "loss", " nats")):
        chosen = found[(found["quantity"] == quantity) & (found["model"] == "dlm")]
        slopes = slope_by_seed(chosen, "position", "value")
        said = f"{what} per position"
        made.append(scalar_effect(said, slopes, chosen["run"], "{:+.3f}" + unit, "grows", f"{SWEEP}: {quantity}"))
    return made
