"""The contested choices crossed: main effects and interactions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence.compare import accuracy_contrast, by_point, final_evaluation
from analysis.evidence.effect import Effect
from analysis.evidence.stats import Estimate
from analysis.pages.dots import effects as drawn
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.pages.findings import decision
from analysis.tables.results import Results

PLACE = 230
TITLE = "Beyond the paper: the contested choices, crossed"
TOPIC = "attention"
SWEEPS = ("contested_factorial",)
SWEEP = SWEEPS[0]
# Options that a sweep may cross. Those with exactly two values in it are its factors; an effect is that of the second
# value over the first.
CHOICES = ("attention_name", "auxiliary_name", "token_shift", "loss_name", "masking_name", "trainable_name")
FIRST = ("block", "none")  # sorted before all other values
# An AR loss needs a clean stream that is causal token by token, so a full factorial does not exist. Instead there are
# three crossings, each of one contested choice about the clean stream with the token shift and the loss weight.
CROSSINGS = {
    "clean or noisy context": ("attention_name", {"block", "block_noisy"}, {"none"}),
    "causality of the clean stream": ("attention_name", {"block", "block_token_causal"}, {"none"}),
    "AR loss on the clean stream": ("auxiliary_name", {"block_token_causal"}, {"none", "ar"}),
}
DIGITS = {"TPF": 2, "bits/byte": 3, "TFLOP": 2}
EFFECTS = (
    "Effects in points of accuracy: the mean where a choice has its second value (in parentheses) minus the mean where "
    "it has its first; of an interaction, half the difference of one effect between the values of the other. 95% "
    "intervals over seeds and items, paired."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEP))
    rows = rows.assign(auxiliary_name=rows["auxiliary_name"].where(rows["auxiliary_name"].notna(), "none"))
    measures = headings("accuracy", "tpf", "nfe", "cloze", "bits_per_byte", "train_flops")
    effects_of = crossings(rows)
    summaries: list[Exhibit] = []
    if effects_of:
        figures = tuple(effect_plot(name, effects) for name, effects in effects_of.items())
        summaries.append(Plot("contested_factorial", figures, EFFECTS, "Main effects and interactions on accuracy"))
        summaries.append(Table(effect_table(effects_of), "The effects of the figure.", aside=True))
    return [
        *summaries,
        Table(by_point(rows, measures, ("label",)), "Every cell, at one token per step.", DIGITS, aside=True),
    ]


def crossings(rows: pd.DataFrame) -> dict[str, list[Effect]]:
    """Name → effects of every crossing whose contested choice has runs of both values."""
    effects_of = {}
    for name, (choice, attention, auxiliary) in CROSSINGS.items():
        crossed = rows[rows["attention_name"].isin(attention) & rows["auxiliary_name"].isin(auxiliary)]
        effects = factorial(crossed)
        if effects and choice in factors(crossed):
            effects_of[name] = effects
    return effects_of


def effect_plot(name: str, effects: list[Effect]) -> Figure:
    return drawn(effects, name, "points of accuracy")


def effect_table(effects_of: dict[str, list[Effect]]) -> pd.DataFrame:
    """One row per effect of every crossing, with its interval and whether it is decided."""
    return pd.DataFrame(
        {
            "effect": e.what,
            "crossed": name,
            "points": Estimate(e.value, e.low, e.high, e.seeds, e.items, runs=e.runs),
            "found": decision(e),
        }
        for name, effects in effects_of.items()
        for e in effects
    )


def factors(rows: pd.DataFrame) -> dict[str, tuple]:
    """Option → its values, for the options with exactly two values."""

    def order(value) -> tuple:
        return value not in FIRST, str(value)

    values_of = {c: tuple(sorted(rows[c].dropna().unique(), key=order)) for c in CHOICES if c in rows}
    return {name: values for name, values in values_of.items() if len(values) == 2}


def factorial(rows: pd.DataFrame) -> list[Effect]:
    """All main effects and two-way interactions in points of accuracy, as contrasts of the cells per seed and item.

    Uses the seeds that have every cell; empty without such a seed.
    """
    factor_values = factors(rows)
    cells = dict(list(rows.groupby(list(factor_values)))) if factor_values else {}
    if not cells or len(cells) != 2 ** len(factor_values):
        return []
    signs = {
        f"{c.removesuffix('_name').replace('_', ' ')} ({b})": np.array(
            [1 if values[i] == b else -1 for values in cells]
        )
        for i, (c, (_, b)) in enumerate(factor_values.items())
    }
    pairs = {f"{a.split(' (')[0]} × {b.split(' (')[0]}": signs[a] * signs[b] for a, b in combinations(signs, 2)}
    arms = list(cells.values())
    contrasts = [accuracy_contrast(arms, 2 * sign / len(sign), what) for what, sign in (signs | pairs).items()]
    return [effect for effect in contrasts if effect.seeds]
