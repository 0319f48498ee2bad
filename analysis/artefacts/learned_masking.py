"""The paper's open question 2: masking learned from decode traces, against hand-set half-lives and uniform masking."""

from __future__ import annotations

import pandas as pd

from analysis.artefacts.table2_masking import REACHED, by_scheme, parallel
from analysis.evidence.compare import accuracy_effect, by_point
from analysis.evidence.effect import Effect
from analysis.pages.claims import effect_text
from analysis.pages.dots import effects
from analysis.pages.exhibits import Exhibit, Plot, Table, headings
from analysis.tables.results import Results

PLACE = 220
TITLE = "Beyond the paper: masking learned from decode traces"
TOPIC = "masking"
SWEEPS = ("learned_masking",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = parallel(results.of("evaluations", SWEEP))
    measures = headings("accuracy", "tpf", "nfe")
    table = by_point(rows, measures, ("label", "setting")).rename(columns={"label": "masking"})
    compared = differences(rows)
    figures = (effects(compared, "", "points of accuracy, learned minus the other", "learned"),) if compared else ()
    return [
        Plot("learned_masking", figures, DIFFERENCES, "Learned masking against every other scheme"),
        Table(by_scheme(rows), "Accuracy %, by scheme and setting."),
        Table(table, f"By scheme and setting; {REACHED}", {"TPF": 2}, aside=True),
        Table(
            pd.DataFrame([{"learned −": e.what, "points": effect_text(e)} for e in compared]), DIFFERENCES, aside=True
        ),
    ]


DIFFERENCES = "Learned masking minus the others in points of accuracy; 95% intervals over seeds and items."


def differences(rows: pd.DataFrame) -> list[Effect]:
    """The accuracy of learned masking minus that of every other scheme, paired, at every setting."""
    compared = []
    for setting, group in rows.groupby("setting", sort=False):
        learned = group[group["point"] == "learned"]
        for label, other in group[group["point"] != "learned"].groupby("label", sort=False):
            compared.append(accuracy_effect(learned, other, f"{label}, {setting}"))
    return [effect for effect in compared if effect.seeds]
