"""How good mean-pooled embeddings are: the AR parent's under its causal mask, the dLM's under a bidirectional one."""

from __future__ import annotations

import pandas as pd

from analysis.evidence.compare import by_point, scalar_effect
from analysis.evidence.stats import Effect
from analysis.pages.exhibits import CELLS, Exhibit, Table
from analysis.tables.results import DLM, PARENT, Results

PLACE = 110
TITLE = "Table 4: embedding quality"
SWEEPS = ("table4_embedding",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    scores = results.of("scores", SWEEP)
    # The parent has the same scores in every run; keep one.
    parent = scores[scores["model"] == PARENT].drop_duplicates("task").assign(label="AR parent")
    scores = pd.concat([parent, scores[scores["model"] == DLM]])
    percent = [c for c in ("score", "score_low", "score_high") if c in scores]
    scores = scores.assign(**{c: 100 * scores[c].astype(float) for c in percent})
    table = by_point(scores, {"score": "score"}, ("task", "label"))
    order = list(dict.fromkeys(table["label"]))
    wide = table.pivot(index="task", columns="label", values="score")[order].reset_index() if len(table) else table
    in_paper = pd.DataFrame(list(paper["table4_embedding"].items()), columns=["model", "average score"])
    return [
        Table(wide, f"Score × 100 per task of the embedded suite. {CELLS}", 1),
        Table(in_paper, "The paper's: 15 datasets of MTEB, zero-shot.", 2),
    ]


def dlm_embeds_better(results: Results, paper: dict) -> list[Effect]:
    """For the recipe without token shift, the paper's."""
    scores = results.of("scores", SWEEP)
    scores = scores[scores["point"] == "base"]
    mean = scores.groupby(["seed", "model"])["score"].mean().unstack()
    both = {PARENT, DLM} <= set(mean.columns)
    gain = 100 * (mean[DLM] - mean[PARENT]) if both else pd.Series(dtype=float)
    return [
        scalar_effect(
            "dLM − parent, mean over tasks", gain, scores["run"], "{:+.1f} points", "+7.71 (4B: +9.91)", SWEEP
        )
    ]
