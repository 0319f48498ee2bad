"""Accuracy and cost by where the grid of blocks begins: behind the prompt, which is then laid out once, or with the
document, so that an answer's first block holds the end of its prompt."""

from __future__ import annotations

from analysis.artefacts.vlm.vlm_recipes import DIGITS, MEASURES, by_threshold
from analysis.evidence.compare import by_point, compare, final_evaluation, sweep_evaluation
from analysis.evidence.effect import SAME, Effect
from analysis.pages.exhibits import Exhibit, Table
from analysis.tables.results import Results

PLACE = 50
TITLE = "Where the grid of blocks begins"
TOPIC = "attention"
SWEEPS = ("vlm_anchor",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEP)
    return [
        Table(by_point(final_evaluation(rows), MEASURES, ("label",)), "At one token per step.", DIGITS),
        Table(by_threshold(sweep_evaluation(rows, "threshold")), "By the confidence τ that commits a token.", DIGITS),
    ]


def a_prompt_need_not_share_a_block(results: Results, paper: dict) -> list[Effect]:
    """Accuracy with blocks that begin behind the prompt against blocks that begin with the document."""
    what = "behind the prompt − with the document"
    return [compare(results, SWEEP, "prompt", "absolute", what, id="anchor", expectation=SAME)]
