"""Accuracy by masking scheme, at one token per forward and at more."""

from __future__ import annotations

import pandas as pd

from analysis.compare import accuracy_effect, by_point, swept
from analysis.exhibits import CELLS, Exhibit, Table, named
from analysis.results import Results
from analysis.stats import Effect

PLACE = 80
TITLE = "Table 2: masking scheme and parallel decoding"
SWEEPS = ("table2_masking",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = parallel(results.of("evaluations", SWEEP))
    shown = named("accuracy", "tpf", "nfe", "threshold")
    table = by_point(rows, shown, ("label", "setting")).rename(columns={"label": "masking"})
    printed = paper["table2_masking"]
    names = ("uniform", "right_to_left", "half_life_0.25", "half_life_0.10", "half_life_0.05")
    columns = [f"TPF {v:g}" for v in printed["tokens_per_forward"]]
    theirs = pd.DataFrame([printed[name] for name in names], columns=columns)
    theirs.insert(0, "masking", [name.replace("_", " ") for name in names])
    return [
        Table(
            table,
            f"Thresholds are chosen on validation items to come near the targets. {CELLS}",
            {"TPF": 2, "threshold": 2},
        ),
        Table(theirs, "The paper's: accuracy %, average of six tasks.", 2),
    ]


def parallel(rows: pd.DataFrame) -> pd.DataFrame:
    """One token per step, then the TPF targets upwards."""
    both = pd.concat([swept(rows, "one_token").assign(target=1.0), swept(rows, "tpf")])
    both = both.assign(setting=["1 token/step" if t == 1 else f"TPF ≈ {t:g}" for t in both["target"]])
    return both.sort_values("target", kind="stable")


def positional_masking_helps(results: Results, paper: dict) -> list[Effect]:
    rows = parallel(results.of("evaluations", SWEEP))
    targets = sorted(rows["target"].dropna().unique())
    fastest = targets[-1] if targets else 5.6

    def pair(better: str, worse: str, target: float, what: str, printed: str) -> Effect:
        at = rows[rows["target"] == target]
        sides = [at[at["point"] == name] for name in (better, worse)]
        lacking = [f"{SWEEP} {n}" for n, side in zip((better, worse), sides, strict=True) if side.empty]
        return accuracy_effect(*sides, what, printed, lacking)

    return [
        pair("half_life_0.1", "uniform", 1.0, "half-life 0.1 − uniform, TPF 1", "+1.75"),
        pair("half_life_0.1", "uniform", fastest, f"half-life 0.1 − uniform, TPF ≈ {fastest:g}", "+4.38"),
        pair("uniform", "right_to_left", 1.0, "uniform − right to left, TPF 1", "+22.06"),
        pair("uniform", "right_to_left", fastest, f"uniform − right to left, TPF ≈ {fastest:g}", "+19.86"),
    ]
