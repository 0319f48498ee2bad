"""In which order a dLM commits the tokens of a block, how sure it is, and what each position costs."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import scalar_effect
from analysis.evidence.effect import TREND, Effect
from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.plots import lines, panel
from analysis.pages.render import STYLE
from analysis.tables.results import DLM, PARENT, Results

PLACE = 60
TITLE = "Figure 6: denoising order, confidence and loss within a block"
TOPIC = "decoding"
SWEEPS = ("figure6_trace",)
SWEEP = SWEEPS[0]
COMMITTED = "#ff6f3c"  # the frame of a committed token


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    positions = results.of("positions", SWEEP)
    plots: list[Exhibit] = []
    step, loss = (positions[positions["quantity"] == name] for name in ("step", "loss"))
    if len(step):
        step = step.assign(setting=step["evaluation"].str.replace("_", " "))
        figure = lines(step, "position", "value", "setting", "(a) order", "position in the block", "mean step, from 0")
        caption = (
            "(a) The step of its block in which a position is committed, mean over answers; bands: range over seeds."
        )
        plots.append(Plot("figure6a_steps", (figure,), caption, "Mean denoising step over position in the block"))
    steps = results.of("steps", SWEEP)
    if len(steps):
        caption = (
            "(b) One answer: confidence of every masked position in every step; circles are committed tokens; ∎ is EOS."
        )
        plots.append(Plot("figure6b_example", (example(steps),), caption, "Confidence over position and step"))
    if len(loss):
        loss = loss.assign(name=["AR parent" if m == PARENT else "dLM" for m in loss["model"]])
        figure = lines(loss, "position", "value", "name", "(c) loss", "position in the block", "loss, nats")
        caption = "(c) Mean loss over the position in the block; bands: range over seeds."
        plots.append(Plot("figure6c_loss", (figure,), caption, "Mean loss over position in the block"))
    return plots


def example(steps: pd.DataFrame) -> Figure:
    """Heat map of confidence over position and step of one decoding, preferably one by threshold."""
    last = steps.sort_values("evaluation", kind="stable").iloc[-1]  # "threshold" comes after "one_token"
    trace = steps[(steps["run"] == last["run"]) & (steps["evaluation"] == last["evaluation"])]
    confidence = trace.pivot(index="step", columns="position", values="confidence")
    figure, axes = panel("(b) one answer", "position", "step", (4.0, 3.4))
    image = axes.imshow(np.ma.masked_invalid(confidence.to_numpy(dtype=float)), vmin=0, vmax=1, aspect="auto")
    with matplotlib.rc_context(STYLE):
        figure.colorbar(image, ax=axes, label="confidence")
    committed = trace[trace["committed"].astype(bool)]
    columns, rows = list(confidence.columns), list(confidence.index)
    x, y = [columns.index(p) for p in committed["position"]], [rows.index(s) for s in committed["step"]]
    axes.scatter(x, y, s=26, facecolors="none", edgecolors=COMMITTED, linewidths=1.4)
    tokens = trace.drop_duplicates("position").set_index("position")["token"]
    axes.set_xticks(range(len(columns)), [visible(tokens.get(p, "")) for p in columns], parse_math=False)
    axes.set_yticks(range(len(rows)), [f"{s:g}" for s in rows])
    axes.grid(False)
    return figure


def visible(token: str) -> str:
    """A token's text with visible symbols for white space and the end of the text."""
    return str(token).replace("<eos>", "∎").replace("\n", "↵").replace(" ", "␣")


def denoise_left_to_right(results: Results, paper: dict) -> list[Effect]:
    """Rank correlations with the position in the block: of the step of commitment within blocks that hold nothing but
    the answer (EOS, which the decoder commits last, and partial blocks left out), averaged over blocks; of the mean
    step and of the mean loss by position."""
    positions = results.of("positions", SWEEP)
    positions = positions[positions["model"] == DLM]
    effects = []
    for evaluation, decoding in DECODINGS.items():
        rows = positions[positions["evaluation"] == evaluation]
        within = rows[rows["quantity"] == "order"].groupby("seed")["value"].mean()
        what = f"order of commitment and position, within full blocks, {decoding}"
        effects.append(correlation(f"order {evaluation}", what, within, rows, f"{SWEEP}: order in full blocks"))
        full = rows[rows["quantity"] == "full_step"]
        steps = full if len(full) else rows[rows["quantity"] == "step"]
        blocks = "full blocks" if len(full) else "all blocks, with EOS"
        what = f"mean step and position, {blocks}, {decoding}"
        effects.append(correlation(f"step {evaluation}", what, by_rank(steps), rows, f"{SWEEP}: step"))
    loss = positions[positions["quantity"] == "loss"]
    effects.append(correlation("loss", "mean loss and position", by_rank(loss), loss, f"{SWEEP}: loss"))
    return effects


DECODINGS = {"one_token": "one token per step", "threshold": "by threshold"}


def correlation(id: str, what: str, by_seed: pd.Series, rows: pd.DataFrame, missing: str) -> Effect:
    facts = {"id": id, "sweep": SWEEP, "in_paper": "grows", "expectation": TREND}
    return scalar_effect(f"rank correlation of {what}", by_seed, rows["run"], "", 2, missing, **facts)


def by_rank(rows: pd.DataFrame) -> pd.Series:
    """Seed → Spearman's rank correlation of the value with the position: 1 where it grows with every position."""
    ranked = {
        seed: float(group["position"].rank().corr(group["value"].astype(float).rank()))
        for seed, group in rows.groupby("seed")
        if group["value"].nunique() > 1
    }
    return pd.Series(ranked, dtype=float)
