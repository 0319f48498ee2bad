"""Published conversions of vision-language models from one parent, on the same examples, beside more AR training."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point, compare, final_evaluation, parent_row, sweep_evaluation
from analysis.evidence.effect import SAME, Effect
from analysis.pages.exhibits import Exhibit, Table, headings
from analysis.tables.results import Results

PLACE = 10
TITLE = "dVLM, its AR parent and the AR control"
TOPIC = "recipes"
SWEEPS = ("vlm_recipes",)
SWEEP = SWEEPS[0]
MEASURES = headings("accuracy", "right_steps", "tpf", "nfe")
FASTER = {"tokens_per_second": "tokens/s"}
DIGITS = {"TPF": 2, "τ": 2, "tokens/s": 0}


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEP)
    one = final_evaluation(rows)
    parent = parent_row(results, SWEEP).assign(label="AR parent")
    drafts = sweep_evaluation(rows, "self_speculative")
    table = pd.concat([by_point(part, MEASURES, ("label",)) for part in (parent, one) if len(part)] or [one.head(0)])
    return [
        Table(table, "At one token per step.", DIGITS),
        Table(by_threshold(sweep_evaluation(rows, "threshold")), "By the confidence τ that commits a token.", DIGITS),
        Table(by_point(drafts, MEASURES | FASTER, ("label",)), "By its own drafts, which AR verifies.", DIGITS),
    ]


def by_threshold(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per recipe and threshold, highest first."""
    rows = rows.sort_values("threshold", ascending=False, kind="stable") if len(rows) else rows
    return by_point(rows, MEASURES | FASTER, ("label", "threshold")).rename(columns={"threshold": "τ"})


def conversion_keeps_accuracy(results: Results, paper: dict) -> list[Effect]:
    """Against the parent trained further on the same examples, so that the data are not in the difference."""
    what = "DiffusionVL − AR control"
    printed = paper["parent_and_dlm"]["average"]
    gap = printed["dlm"] - printed["parent"]
    facts = {"paper": gap, "in_paper": f"{gap:+.1f} to the parent"}
    effect = compare(results, SWEEP, "diffusionvl", "vlm_control", what, id="control", expectation=SAME, **facts)
    own = compare(results, SWEEP, "small_budget", "vlm_control", "ours − AR control", id="ours", expectation=SAME)
    return [effect, own]
