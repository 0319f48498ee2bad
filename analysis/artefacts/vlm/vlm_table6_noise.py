"""Accuracy by what shares a noise level, a block or an answer, and of diffusion over the whole answer."""

from __future__ import annotations

from analysis.artefacts.vlm.vlm_recipes import DIGITS, MEASURES
from analysis.evidence.compare import by_point, compare, final_evaluation
from analysis.evidence.effect import Effect
from analysis.pages.exhibits import Exhibit, Table, paper_table
from analysis.tables.results import Results

PLACE = 30
TITLE = "DiffusionVL, Table 6: what shares a noise level"
TOPIC = "noise"
SWEEPS = ("vlm_table6_noise",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = final_evaluation(results.of("evaluations", SWEEP))
    return [
        Table(by_point(rows, MEASURES, ("label",)), "At one token per step.", DIGITS),
        paper_table(paper["table6_noise"], "Qwen2.5-VL-7B", 2),
    ]


def block_level_noise_is_best(results: Results, paper: dict) -> list[Effect]:
    """A level for each block against one for the answer, and against full diffusion."""
    shared = {"unit": "points"}
    level = {"in_paper": "+0.3 (ChartQA), +1.3 (MMStar)", "paper": 0.8}
    full = {"in_paper": "+32.2 (ChartQA), +1.1 (MMStar)", "paper": 16.7}
    return [
        compare(results, SWEEP, "block", "sequence", "per block − per answer", id="level", **shared, **level),
        compare(results, SWEEP, "block", "full", "per block − full diffusion", id="full", **shared, **full),
    ]
