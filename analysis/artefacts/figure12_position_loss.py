"""Loss over the positions of a sequence: periodic in the block for the dLM, not for its AR parent."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import scalar_effect
from analysis.evidence.effect import SAME, Effect
from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.plots import lines
from analysis.tables.results import DLM, PARENT, Results

PLACE = 160
TITLE = "Figure 12: loss over sequence positions"
TOPIC = "decoding"
SWEEPS = ("figure12_position_loss",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = losses(results)
    if rows.empty:
        return []
    rows = rows.assign(
        line=["AR parent" if m == PARENT else x for m, x in zip(rows["model"], rows["label"], strict=True)]
    )
    figure = lines(rows, "position", "value", "line", "", "position in the sequence", "loss, nats")
    for line in figure.axes[0].lines:
        line.set(markersize=0, linewidth=1.2)
    size = rows["block_size"].iloc[0]
    caption = f"Mean loss at every position of rows of held-out prose; the dLM's block is {size:g} tokens."
    return [
        Plot("figure12_position_loss", (figure,), caption, "Loss over sequence position for the dLM and its parent")
    ]


def losses(results: Results) -> pd.DataFrame:
    """`value`: the mean loss (nats) at every `position` in the sequence, per run and model."""
    rows = results.of("positions", SWEEP)
    return rows[rows["quantity"] == "sequence_loss"]


def loss_is_block_periodic(results: Results, paper: dict) -> list[Effect]:
    """The share of the loss's variance over positions that the position in the block explains: the dLM's over its
    parent's, without the token shift and with it, and the parent's own, which should be none."""
    rows = losses(results)
    facts = {"unit": "", "digits": 2, "missing": f"{SWEEP}: loss by position", "sweep": SWEEP, "in_paper": "periodic"}
    effects = []
    for point, shift in (("base", "without the token shift"), ("shift", "with it")):
        of_point = rows[rows["point"] == point]
        gain = (shares(of_point, DLM) - shares(of_point, PARENT)).dropna()
        what = f"share of the variance that the position in the block explains, dLM − parent, {shift}"
        effects.append(scalar_effect(what, gain, of_point["run"], id=point, **facts))
    own = shares(rows[rows["point"] == "base"], PARENT)
    facts |= {"in_paper": "not periodic", "expectation": SAME, "margin": NOT_PERIODIC}
    return [*effects, scalar_effect("the same share of the AR parent", own, rows["run"], id="parent", **facts)]


NOT_PERIODIC = 0.1  # of the variance


def shares(rows: pd.DataFrame, model: str) -> pd.Series:
    """Seed → `periodic_share` of a model's loss."""
    by_seed = rows[rows["model"] == model].groupby("seed")
    return pd.Series({seed: periodic_share(group) for seed, group in by_seed}, dtype=float)


def periodic_share(rows: pd.DataFrame) -> float:
    """Adjusted R², at least 0, of the mean loss per position in the block, over whole blocks after the first.

    The first block is left out because its loss is high in any model for lack of context. NaN with at most one block.
    """
    size = int(rows["block_size"].iloc[0])
    inner = rows[rows["position"] >= size].sort_values("position")
    inner = inner.head(len(inner) // size * size)
    n, total = len(inner), ((inner["value"] - inner["value"].mean()) ** 2).sum()
    if n <= size or total == 0:
        return 0.0 if total == 0 else float("nan")
    residual = inner["value"] - inner.groupby(inner["position"] % size)["value"].transform("mean")
    return max(0.0, float(1 - ((residual**2).sum() / (n - size)) / (total / (n - 1))))
