"""Accuracy with images on the three axes of positions of their parent, and with all tokens numbered on one axis, as the
released code of DiffusionVL numbers them. The parent is measured on three axes and on one, and so is its conversion."""

from __future__ import annotations

from analysis.artefacts.vlm.vlm_recipes import DIGITS, MEASURES
from analysis.evidence.compare import by_point, compare, final_evaluation
from analysis.evidence.effect import Effect
from analysis.pages.exhibits import Exhibit, Table
from analysis.tables.results import PARENT, Results

PLACE = 60
TITLE = "Positions of images on three axes, and on one"
TOPIC = "parent"
SWEEPS = ("vlm_positions", "vlm_axes_parent")
SWEEP = SWEEPS[0]


def exhibits(results: Results, paper: dict) -> list[Exhibit]:
    rows = results.of("evaluations", SWEEPS)
    before = final_evaluation(rows, model=PARENT)
    return [
        Table(by_point(final_evaluation(rows), MEASURES, ("label",)), "At one token per step.", DIGITS),
        Table(by_point(before, MEASURES, ("label",)), "The parent of each row, before a step is trained.", DIGITS),
    ]


def positions_are_worth_keeping(results: Results, paper: dict) -> list[Effect]:
    """Three axes against one, by DiffusionVL's recipe and by the same with the token shift."""
    return [
        compare(results, SWEEP, "three", "one", "three axes − one", id="axes"),
        compare(results, SWEEP, "three_shift", "one_shift", "three axes − one, token shift", id="shift"),
    ]
