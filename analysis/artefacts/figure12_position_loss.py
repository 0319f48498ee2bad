"""Loss over the positions of a sequence: periodic in the block for the dLM, not for its AR parent."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import scalar_effect
from analysis.evidence.stats import Effect
from analysis.pages.exhibits import Exhibit, Plot
from analysis.pages.plots import lines
from analysis.tables.results import DLM, PARENT, Results

PLACE = 160
TITLE = "Figure 12: loss over sequence positions"
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
    """The share of the loss's variance over positions explained by the position in the block, without token shift."""
    rows = losses(results)
    rows = rows[rows["point"] == "base"]
    shares = {
        model: pd.Series(
            {seed: periodic_share(g) for seed, g in rows[rows["model"] == model].groupby("seed")}, dtype=float
        )
        for model in (DLM, PARENT)
    }
    what = "share of the variance that the position in the block explains, dLM − parent"
    gain = (shares[DLM] - shares[PARENT]).dropna()
    return [scalar_effect(what, gain, rows["run"], "{:+.2f}", "periodic", f"{SWEEP}: loss by position")]


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
