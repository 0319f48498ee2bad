"""Accuracy of every conversion of Table 1 in every family of tasks: what an average over families hides."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from analysis.evidence.answers import families_of, outcomes
from analysis.evidence.compare import final_evaluation
from analysis.evidence.stats import estimate
from analysis.pages.dots import Dot, dots
from analysis.pages.exhibits import Exhibit, Plot
from analysis.tables.domains import DOMAINS
from analysis.tables.results import Results

PLACE = 205
TITLE = "Beyond the paper: by family of tasks"
TOPIC = "attention"
SWEEPS = ("table1_attention",)
SAID = (
    "At one token per step; families by growing length of their answers. Where runs do not record the family of an "
    "item, its domain stands for it."
)


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEPS))
    panels = tuple(
        dots(
            [
                Dot(point, group["label"].iloc[0], estimate(group, "score", 100))
                for point, group in scored.groupby("point")
            ],
            title,
            "accuracy, %",
            limits=(-3.0, 103.0),
        )
        for title, scored in by_family(rows)
    )
    return [Plot("by_family", panels, SAID, "Accuracy by family of tasks, one panel a family, one row a conversion")]


def by_family(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, rows with their `score`, a fraction) of every family, or of every domain where rows record no family."""
    families = sorted(families_of(rows).items(), key=lambda family: (family[1][0], family[0]))
    for name, (tokens, items) in families:
        scores = [float(outcomes(correct)[items].mean()) for correct in rows["correct"]]
        yield f"{name.replace('_', ' ')}, {tokens:.0f} tokens", rows.assign(score=scores, score_n=len(items))
    for domain in () if families else DOMAINS:
        known = rows.dropna(subset=[domain])
        if len(known):
            yield domain, known.assign(score=known[domain].astype(float))
