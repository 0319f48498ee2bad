"""Accuracy by block size of training and decoding, and what a threshold trades of it for fewer forwards."""

from __future__ import annotations

from analysis.artefacts.vlm.vlm_recipes import DIGITS, MEASURES, by_threshold
from analysis.evidence.compare import by_point, final_evaluation, parent_accuracy, sweep_evaluation
from analysis.evidence.contrasts import trend_effect
from analysis.evidence.effect import Effect
from analysis.evidence.kept import KEPT, with_kept
from analysis.pages.exhibits import Exhibit, Plot, Table, paper_table
from analysis.pages.plots import frontier
from analysis.tables.results import Results

PLACE = 20
TITLE = "DiffusionVL, Tables 5 and 7: block size and threshold"
TOPIC = "block size"
SWEEPS = ("vlm_table5_block_size",)
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEP)
    table = by_point(final_evaluation(rows), MEASURES, ("block_size",)).rename(columns={"block_size": "block"})
    swept = with_kept(results, sweep_evaluation(rows, "threshold").sort_values("threshold"))
    drawn = (frontier(swept, "tpf", "label", "threshold", "here", "tokens per forward", KEPT, "kept"),)
    return [
        Table(table, "At one token per step, decoded with the block of training.", DIGITS),
        paper_table(paper["table5_block_size"], "3B, one epoch of 738K conversations; tokens/s on its machine", 1),
        Plot("vlm_table7_threshold", drawn, "By threshold; mean over seeds.", "Accuracy by tokens per forward"),
        Table(by_threshold(swept).drop(columns="label", errors="ignore"), "By threshold τ.", DIGITS),
        paper_table(paper["table7_threshold"], "BERTScore and tokens/s on DetailCaps, 8 steps of a block", 1),
    ]


def small_blocks_are_better(results: Results, paper: dict) -> list[Effect]:
    """Points of accuracy per halving of the block, at one token per step."""
    rows = final_evaluation(results.of("evaluations", SWEEP))
    rows = rows.assign(halved=1 / rows["block_size"].astype(float)) if len(rows) else rows.assign(halved=[])
    facts = {"parent": parent_accuracy(results, SWEEP), "in_paper": "+1.3 (ChartQA)", "paper": 1.3}
    missing = [f"{SWEEP} block_size=*"]
    return [trend_effect(rows, "halved", "per halving of the block", missing, id="halving", sweep=SWEEP, **facts)]
