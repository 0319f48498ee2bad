"""Comparisons at equal cost: runs that cost the same as they are, others between their budgets, none beyond them."""

import numpy as np
import pytest
from study_tables import Study, correct

from analysis.artefacts import equal_cost as artefact
from analysis.evidence.compare import final_evaluation
from analysis.evidence.equal_cost import at_equal_cost

SWEEP, BUDGETS = "table1_attention", "shift_by_budget"
DEAR, CHEAP = {"attention_name": "block"}, {"attention_name": "block_noisy"}


def rows_of(study):
    return final_evaluation(study.results.of("evaluations", artefact.SWEEPS))


def compared(study, cost="FLOPs"):
    rows = rows_of(study)
    f, d = (rows[(rows["sweep"] == SWEEP) & (rows["point"] == name)] for name in "fd")
    return at_equal_cost(f, d, rows, cost, "f − d")


def two_arms(seeds=(0, 1, 2), again=True):
    """f costs twice as much as d; d has 40 % right, and 60 % (`again`) with twice its budget."""
    study = Study()
    for seed in seeds:
        study.own(study.point(SWEEP, "f", seed, train_flops=2e12, examples=100, **DEAR), 0.7)
        study.own(study.point(SWEEP, "d", seed, train_flops=1e12, examples=100, **CHEAP), 0.4)
        if again:
            study.own(study.point(BUDGETS, "twice", seed, train_flops=2.01e12, examples=200, tokens=2000, **CHEAP), 0.6)
    return study


def test_at_equal_examples_runs_are_compared_as_they_were_trained():
    found = compared(two_arms(), "examples")
    assert found.effect.value == pytest.approx(30) and found.effect.seeds == 3 and not found.interpolated


def test_at_equal_flops_the_cheaper_arm_has_its_run_that_cost_as_much_within_one_percent():
    found = compared(two_arms())
    assert found.effect.value == pytest.approx(10) and not found.interpolated
    assert any("twice" in run for run in found.effect.runs)


def test_between_two_budgets_accuracy_is_interpolated_over_the_logarithm_of_the_cost():
    study = two_arms()
    for row in study.rows["runs"]:
        if row["run"].startswith(f"{SWEEP}/f"):
            row["train_flops"] = np.sqrt(1e12 * 2.01e12)
    found = compared(study)
    assert found.interpolated and found.effect.value == pytest.approx(70 - 50)


def test_an_arm_that_no_budget_takes_far_enough_is_not_extrapolated():
    found = compared(two_arms(again=False))
    assert not found.effect.seeds and artefact.text(found) == "no runs at a common cost"


def test_a_run_with_another_option_is_no_budget_of_the_arm():
    study = two_arms(again=False)
    for seed in range(3):
        run = study.point(BUDGETS, "other", seed, train_flops=2e12, block_size=4, tokens=2000, **CHEAP)
        study.own(run, 0.9)
    assert not compared(study).effect.seeds


def test_a_cost_that_was_not_recorded_is_said_to_be_missing():
    study = Study()
    for point, choices in (("f", DEAR), ("d", CHEAP)):
        study.own(study.point(SWEEP, point, examples=None, **choices), 0.5)
    (table,) = artefact.exhibits(study.results, {})
    assert list(table.frame.columns) == ["pair", "what", "equal FLOPs", "equal tokens"]
    assert table.caption.endswith("Not measured in these runs: equal examples.")


def test_the_difference_is_paired_by_item():
    study = Study()
    for point, choices, outcomes in (("f", DEAR, correct(0.5)), ("d", CHEAP, correct(0.5, wrong_first=False))):
        study.own(study.point(SWEEP, point, **choices), 0.5, outcomes=outcomes)
    assert compared(study, "tokens").effect.value == 0 and compared(study, "tokens").effect.high > 5
