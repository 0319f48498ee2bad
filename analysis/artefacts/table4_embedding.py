"""How good mean-pooled embeddings are: the AR parent's under its causal mask, the dLM's under a bidirectional one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.evidence.compare import by_point, scalar_effect
from analysis.evidence.effect import Effect
from analysis.pages.exhibits import Exhibit, Table
from analysis.tables.results import DLM, PARENT, Results
from dlm.evaluation.interval import Z95

PLACE = 110
TITLE = "Table 4: embedding quality"
TOPIC = "training"
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
        Table(wide, "Score × 100 per task of the embedded suite.", 1),
        Table(in_paper, "The paper's: 15 datasets of MTEB, zero-shot.", 2),
    ]


def dlm_embeds_better(results: Results, paper: dict) -> list[Effect]:
    """For the recipe without token shift, the paper's, and for the others."""
    scores = results.of("scores", SWEEP)
    in_paper = paper["table4_embedding"]
    gains = [in_paper[f"Efficient-DLM {size}"] - in_paper[f"{ar} {size}"] for ar, size in PAIRS]
    facts = {"in_paper": f"{gains[0]:+.2f} (4B: {gains[1]:+.2f})", "paper": gains[0], "missing": SWEEP, "sweep": SWEEP}
    effects = []
    for point, label in (("base", "no shift"), ("shift", "token shift"), ("bidir", "bidirectional")):
        rows = scores[scores["point"] == point]
        mean = rows.groupby(["seed", "model"])["score"].mean().unstack()
        both = {PARENT, DLM} <= set(mean.columns)
        gain = 100 * (mean[DLM] - mean[PARENT]) if both else pd.Series(dtype=float)
        what, noise = f"dLM − parent, mean over tasks, {label}", item_error(rows)
        effects.append(scalar_effect(what, gain, rows["run"], "points", 1, item_error=noise, id=point, **facts))
    return effects


PAIRS = (("Qwen2.5", "1.5B"), ("Qwen3", "4B"))


def item_error(scores: pd.DataFrame) -> float:
    """The standard error of the gain in points owing to the texts, as if dLM and parent had each their own. A task
    without a recorded interval counts like the others on average; 0 where none is recorded."""
    if not {"score_low", "score_high"} <= set(scores) or scores.empty:
        return 0.0
    error = (scores["score_high"].astype(float) - scores["score_low"].astype(float)) / (2 * Z95)
    of_tasks = error.groupby([scores["model"], scores["task"]]).mean()
    if of_tasks.count() == 0:
        return 0.0
    return 100 * float(np.sqrt((of_tasks**2).mean() * len(of_tasks))) / scores["task"].nunique()
