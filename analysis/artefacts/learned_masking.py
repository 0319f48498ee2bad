"""The paper's open question 2: masking learned from decode traces, against hand-set half-lives and uniform masking."""

from __future__ import annotations

import pandas as pd

from analysis.artefacts.table2_masking import REACHED, parallel
from analysis.evidence.compare import accuracy_effect, by_point
from analysis.pages.claims import effect_text
from analysis.pages.exhibits import CELLS, Exhibit, Table, headings
from analysis.tables.results import Results

PLACE = 220
TITLE = "Beyond the paper: masking learned from decode traces"
SWEEPS = ("learned_masking",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = parallel(results.of("evaluations", SWEEP))
    measures = headings("accuracy", "tpf", "nfe")
    table = by_point(rows, measures, ("label", "setting")).rename(columns={"label": "masking"})
    return [
        Table(table, f"Of the targets of tokens per forward, {REACHED} {CELLS}", {"TPF": 2}),
        Table(
            differences(rows), "Learned masking minus the others in points of accuracy; interval over seeds and items."
        ),
    ]


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of learned masking minus that of every other scheme, paired, at every setting."""
    table = []
    for setting, group in rows.groupby("setting", sort=False):
        learned = group[group["point"] == "learned"]
        for label, other in group[group["point"] != "learned"].groupby("label", sort=False):
            effect = accuracy_effect(learned, other, label)
            if effect.seeds:
                table.append(
                    {"setting": setting, "learned −": label, "difference": effect_text(effect), "from": effect.basis}
                )
    return pd.DataFrame(table)
