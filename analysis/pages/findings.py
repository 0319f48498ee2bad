"""Sentences generated from the tables: which model leads, at what cost, by how much, and whether that is decided."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.evidence.compare import accuracy_effect
from analysis.evidence.effect import SEEDS_NEEDED, Effect
from analysis.pages.claims import effect_text
from analysis.pages.exhibits import Table
from analysis.tables.results import FINISHED, Results

RULE = (
    "Intervals: 95 %, of accuracy over seeds and items, paired, else over seeds. Undecided: the interval contains 0, "
    "or is not known. The best is chosen by the data that it is then compared on, which favours it a little; nothing "
    "is corrected for the number of comparisons."
)


def rank_groups(rows: pd.DataFrame, by: Sequence[str] = ("label",)) -> list[pd.DataFrame]:
    """The rows of each group, by falling mean accuracy; ties go to fewer forwards."""
    groups = [group for _, group in rows.dropna(subset=["accuracy"]).groupby(list(by), sort=False, dropna=False)]
    return sorted(groups, key=lambda g: (-round(g["accuracy"].mean(), 9), g["nfe"].mean()))


def score_text(rows: pd.DataFrame) -> str:
    """A group's mean accuracy and forwards: `80.0 % at NFE 7.0`."""
    return f"{100 * rows['accuracy'].mean():.1f} % at NFE {rows['nfe'].mean():.1f}"


def lead_text(better: pd.DataFrame, worse: pd.DataFrame, name: str) -> str:
    """The lead of one group over another: `+3.2 points (−1.0 to +7.4) against SDAR: undecided`."""
    effect = accuracy_effect(better, worse, "")
    return f"{effect_text(effect)} against {name}: {decision(effect)}"


def decision(effect: Effect) -> str:
    """Whether an effect differs from 0, with the number of seeds if fewer than `SEEDS_NEEDED`."""
    if not effect.seeds:
        return "nothing to compare"
    if not (effect.low > 0 or effect.high < 0):
        return "undecided"
    few = f", {'over the items of' if effect.items else 'with'} {effect.seeds} seed{'s' if effect.seeds > 1 else ''}"
    return "decided" + (few if effect.seeds < SEEDS_NEEDED else "")


def findings(sentences: Sequence[str], note: str, rule: str = RULE) -> Table:
    """The sentences as a table; `note` states their basis, `rule` when they call something decided."""
    return Table(pd.DataFrame({"found": list(sentences)}), f"{note} {rule}")


def coverage(results: Results, sweeps: Sequence[str]) -> str:
    """How many points of the sweeps have a finished run, and which have not, as text."""
    points = results.points[results.points["sweep"].isin(sweeps)]
    done = points[points["state"] == FINISHED]
    missing = points[points["state"] != FINISHED]
    text = f"From {len(done)} of {len(points)} runs."
    if len(missing):
        names = ", ".join(dict.fromkeys(missing["label"]))
        text += f" Without a finished run of every seed: {names}."
    return text
