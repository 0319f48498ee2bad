"""Token shift against the budget of the conversion: where do the curves cross?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.compare import accuracy_effect, by_point, own
from analysis.exhibits import CELLS, Exhibit, Plot, Table, named
from analysis.plots import lines
from analysis.results import DLM, Results

PLACE = 240
TITLE = "Beyond the paper: token shift and budget"
SWEEPS = ("shift_by_budget", "shift_by_setting", "figure12_position_loss")
SETTING = ["size", "attention_name", "block_size", "lr"]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = described(own(results.of("evaluations", SWEEPS[:2])).drop_duplicates("run"))
    shown = named("accuracy", "tpf", "nfe", "bits_per_byte", "train_flops")
    panels = [
        lines(group, "tokens", "accuracy", "shift", name, "training tokens", "accuracy, %", 100, log=True)
        for name, group in rows.groupby("setting_name", sort=False)
        if group["tokens"].nunique() > 1
    ]
    table = by_point(rows, shown, ("setting_name", "tokens", "shift")).rename(columns={"setting_name": "conversion"})
    return [
        Plot(
            "shift_by_budget", tuple(panels), "At one token per step; bands: range over seeds.", "Accuracy over tokens"
        ),
        Table(
            gains(rows),
            "With the shift minus without, points of accuracy; crossing: where the means meet, interpolated.",
        ),
        Plot(
            "shift_by_position",
            by_position(results),
            FIRST,
            "Loss over the position in the block with and without shift",
        ),
        Table(table, CELLS, {"TPF": 2, "bits/byte": 3, "TFLOP": 2}),
    ]


FIRST = (
    "Loss of a masked token over its position in the block. With the shift, the clean last token of the block before "
    "predicts the first token of a block, as in the AR parent; what the shift gains at position 0 alone is that."
)


def by_position(results: Results) -> tuple[Figure, ...]:
    found = results.of("positions", "figure12_position_loss")
    found = found[(found["quantity"] == "loss") & (found["model"] == DLM)]
    return (lines(found, "position", "value", "label", "", "position in the block", "loss, nats"),)


def described(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `setting_name`, what a curve has in common, and `shift`."""
    rows = rows.assign(
        size=[f"{v / 1e6:.3g}M" for v in rows["parameters"]],
        shift=["with the shift" if s else "without" for s in rows["token_shift"]],
    ).sort_values([*SETTING, "tokens"])
    names = [f"{size}, {a}, block {b:g}, lr {lr:g}" for size, a, b, lr in rows[SETTING].itertuples(index=False)]
    return rows.assign(setting_name=names)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Per curve and budget, what the shift is worth, and between which budgets the sign changes."""
    made = []
    for name, group in rows.groupby("setting_name", sort=False):
        effects = {}
        for tokens, at in group.groupby("tokens"):
            shifted = at["token_shift"].astype(bool)
            effect = accuracy_effect(at[shifted], at[~shifted], name)
            if effect.seeds:
                effects[tokens] = effect
        crossing = zero_crossing({t: e.value for t, e in effects.items()})
        for tokens, effect in effects.items():
            interval = f"{effect.value:+.1f} ({effect.low:+.1f} to {effect.high:+.1f})"
            made.append({"conversion": name, "tokens": f"{tokens:,.0f}", "gain": interval, "crossing": crossing})
    return pd.DataFrame(made, columns=["conversion", "tokens", "gain", "crossing"])


def zero_crossing(gain: dict[float, float]) -> str:
    """The budget at which the gain reaches 0, interpolated over the logarithm of the tokens."""
    tokens = sorted(gain)
    for a, b in pairwise(tokens):
        if gain[a] * gain[b] < 0:
            share = gain[a] / (gain[a] - gain[b])
            return f"{np.exp(np.log(a) + share * np.log(b / a)):,.0f} tokens"
    return "none in this range"
