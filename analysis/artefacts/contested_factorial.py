"""The contested choices crossed: main effects and interactions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
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
# Choices of a run that a sweep may cross; those that take two values in it are its factors.
CHOICES = ("token_shift", "clean_causal", "loss_name", "ar_weight", "attention_name", "masking_name", "trainable_name")


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = own(results.of("evaluations", SWEEP))
    shown = named("accuracy", "tpf", "nfe", "cloze", "bits_per_byte", "train_flops")
    effects = factorial(rows, "accuracy")
    said = (
        "Effects in points of accuracy: the mean where a choice has its second value (in parentheses) minus the mean "
    )
    said += (
        "where it has its first; of an interaction, half the difference of one effect between the values of the other. "
    )
    said += "95 % intervals from the residuals over seeds."
    made: list[Exhibit] = []
    if len(effects):
        intervals = list(effects[["effect", "low", "high"]].itertuples(index=False, name=None))
        figure = bars(list(effects["of"]), intervals, "", "points of accuracy")
        made.append(Plot("contested_factorial", (figure,), said, "Main effects and interactions on accuracy"))
    return [*made, Table(by_point(rows, shown), CELLS, {"TPF": 2, "bits/byte": 3, "TFLOP": 2})]


def factors(rows: pd.DataFrame) -> dict[str, tuple]:
    """The choices that take exactly two values, with these."""
    found = {c: tuple(sorted(rows[c].dropna().unique(), key=str)) for c in CHOICES if c in rows}
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
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in made])
