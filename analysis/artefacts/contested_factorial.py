"""The contested choices crossed: main effects and interactions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from analysis.compare import by_point, own
from analysis.exhibits import CELLS, Exhibit, Plot, Table, named
from analysis.plots import bars
from analysis.results import Results
from analysis.stats import LEVEL

PLACE = 230
TITLE = "Beyond the paper: the contested choices, crossed"
SWEEPS = ("contested_factorial",)
SWEEP = SWEEPS[0]
# Choices of a run that a sweep may cross; those that take two values in it are its factors, and the second value is the
# one that an effect is of.
CHOICES = ("attention_name", "auxiliary_name", "token_shift", "loss_name", "masking_name", "trainable_name")
FIRST = ("block", "none")  # values that come first, whatever the alphabet says
# An AR loss needs a clean stream that is causal token by token, so that not everything can be crossed with everything:
# three crossings of what is contested about the clean stream, each with the token shift and the loss weight.
CROSSINGS = {
    "clean or noisy context": ("attention_name", {"block", "block_noisy"}, {"none"}),
    "causality of the clean stream": ("attention_name", {"block", "block_token_causal"}, {"none"}),
    "AR loss on the clean stream": ("auxiliary_name", {"block_token_causal"}, {"none", "ar"}),
}
EFFECTS = (
    "Effects in points of accuracy: the mean where a choice has its second value (in parentheses) minus the mean where "
    "it has its first; of an interaction, half the difference of one effect between the values of the other. 95 % "
    "intervals from the residuals over seeds and the interactions of three."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = own(results.of("evaluations", SWEEP))
    rows = rows.assign(auxiliary_name=rows["auxiliary_name"].where(rows["auxiliary_name"].notna(), "none"))
    shown = named("accuracy", "tpf", "nfe", "cloze", "bits_per_byte", "train_flops")
    found = crossings(rows)
    made: list[Exhibit] = []
    if found:
        figures = tuple(drawn(name, effects) for name, effects in found.items())
        made.append(Plot("contested_factorial", figures, EFFECTS, "Main effects and interactions on accuracy"))
        made.append(Table(effect_table(found), EFFECTS))
    return [*made, Table(by_point(rows, shown), CELLS, {"TPF": 2, "bits/byte": 3, "TFLOP": 2})]


def crossings(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The effects of every crossing whose own choice was run both ways."""
    made = {}
    for name, (choice, attention, auxiliary) in CROSSINGS.items():
        chosen = rows[rows["attention_name"].isin(attention) & rows["auxiliary_name"].isin(auxiliary)]
        effects = factorial(chosen, "accuracy")
        if len(effects) and choice in factors(chosen):
            made[name] = effects
    return made


def drawn(name: str, effects: pd.DataFrame) -> Figure:
    intervals = list(effects[["effect", "low", "high"]].itertuples(index=False, name=None))
    return bars(list(effects["of"]), intervals, name, "points of accuracy")


def effect_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """All effects with what can be said of them: undecided where the interval holds 0, or is not known."""
    rows = []
    for name, effects in found.items():
        for e in effects.itertuples():
            interval = f"{e.low:+.1f} to {e.high:+.1f}".replace("-", "−") if np.isfinite(e.low) else "–"
            decided = "decided" if e.low > 0 or e.high < 0 else "undecided"
            rows.append({"crossed": name, "of": e.of, "points": e.effect, "95 %": interval, "found": decided})
    return pd.DataFrame(rows)


def factors(rows: pd.DataFrame) -> dict[str, tuple]:
    """The choices that take exactly two values, with these."""

    def order(value) -> tuple:
        return value not in FIRST, str(value)

    found = {c: tuple(sorted(rows[c].dropna().unique(), key=order)) for c in CHOICES if c in rows}
    return {name: values for name, values in found.items() if len(values) == 2}


def factorial(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`of, effect, low, high` of all main effects and interactions of two, in percent: least squares on ±1/2 codes."""
    columns = ["of", "effect", "low", "high"]
    crossed = factors(rows) if len(rows) else {}
    if not crossed:
        return pd.DataFrame(columns=columns)
    codes = {
        f"{c.removesuffix('_name').replace('_', ' ')} ({b})": np.where(rows[c] == b, 0.5, -0.5)
        for c, (_, b) in crossed.items()
    }
    pairs = {f"{a.split(' (')[0]} × {b.split(' (')[0]}": 2 * codes[a] * codes[b] for a, b in combinations(codes, 2)}
    terms = codes | pairs
    design = np.column_stack([np.ones(len(rows)), *terms.values()])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return pd.DataFrame(columns=columns)  # cells are missing: the effects cannot be told apart
    y = 100 * rows[measure].to_numpy(dtype=float)
    beta = np.linalg.lstsq(design, y, rcond=None)[0]
    freedom = len(y) - design.shape[1]
    variance = ((y - design @ beta) ** 2).sum() / freedom if freedom else np.nan
    half = student.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    made = zip(terms, beta[1:], (beta - half)[1:], (beta + half)[1:], strict=True)
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in made]).round(dict.fromkeys(columns[1:], 9))
