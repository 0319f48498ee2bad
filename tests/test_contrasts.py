"""What is compared and how: paired effects, equal FLOPs, curves with a best value, factorials and crossings."""

import numpy as np
import pandas as pd
import pytest
from study_tables import ITEMS, Study, correct

from analysis.artefacts.contested_factorial import effect_table, factorial
from analysis.artefacts.shift_by_budget import crossing
from analysis.evidence.compare import accuracy_effect, final_evaluation
from analysis.evidence.contrasts import at_cost, sweet_spot
from analysis.evidence.effect import CANNOT_DECIDE, NO_RUNS, Effect
from analysis.evidence.equal_flops import at_equal_flops, training_curves
from analysis.evidence.intervals import Mean
from analysis.tables.results import pack


def test_an_accuracy_effect_is_the_paired_difference_in_points():
    study = Study()
    for seed in range(3):
        for point, accuracy in (("f", 0.4), ("g", 0.8)):
            study.own(study.point("table1_attention", point, seed), accuracy)
    rows = final_evaluation(study.results.of("evaluations", "table1_attention"))
    effect = accuracy_effect(rows[rows["point"] == "g"], rows[rows["point"] == "f"], "g − f")
    assert effect.value == pytest.approx(40) and effect.items == ITEMS and effect.seeds == 3
    half = 1.987 * 100 * np.sqrt(0.4 * 0.6 / (ITEMS - 1))  # Student's over items alone: the seeds agree
    assert (effect.low, effect.high) == pytest.approx((40 - half, 40 + half), abs=0.01)
    assert effect.arms == pytest.approx((80, 40))


def test_an_accuracy_effect_is_told_by_family_where_these_are_recorded():
    study, families = Study(), "sort 45 6, add 45 3"
    for seed in range(3):
        for point, accuracy in (("f", 0.5), ("g", 1.0)):  # the first half of the items is wrong in f
            study.own(study.point("table1_attention", point, seed), accuracy, families=families)
    rows = final_evaluation(study.results.of("evaluations", "table1_attention"))
    effect = accuracy_effect(rows[rows["point"] == "g"], rows[rows["point"] == "f"], "g − f")
    assert [(p.name, p.answer_tokens, p.mean.value) for p in effect.by_family] == [("add", 3, 0), ("sort", 6, 100)]
    assert (effect.value, effect.low, effect.high) == pytest.approx((50, 50, 50))  # families are no sample


def test_equal_flops_interpolates_where_the_cheapest_run_ends():
    study = Study()
    for point, flops, value in (("f", 2e12, 1.0), ("d", 1e12, 3.0)):
        run = study.point("table1_attention", point, train_flops=flops, tokens=1000)
        study.curve(run, {500: 4.0, 1000: value})
    curves = training_curves(study.results, "table1_attention")
    assert sorted(curves["flops"]) == [0.5e12, 1e12, 1e12, 2e12]
    assert {point: e.mean for point, e in at_equal_flops(curves).items()} == {"d": 3.0, "f": 4.0}


def test_equal_flops_leaves_out_a_run_that_was_first_validated_later():
    study = Study()
    for point, flops in (("f", 8e12), ("d", 1e12)):
        study.curve(study.point("table1_attention", point, train_flops=flops), {500: 4.0, 1000: 2.0})
    found = at_equal_flops(training_curves(study.results, "table1_attention"))
    assert {point: e.mean for point, e in found.items()} == {"d": 2.0}


def test_equal_flops_compares_the_seeds_that_every_point_has():
    """Seed 0 of f, the best one, was first validated at its end."""
    study = Study()
    for seed in range(3):
        for point, flops in (("f", 8e12), ("d", 4e12)):
            run = study.point("table1_attention", point, seed, train_flops=flops)
            late = (point, seed) == ("f", 0)
            study.curve(run, {1000: 1.0} if late else {250: 4.0, 1000: 4.0 if seed else 1.0})
    found = at_equal_flops(training_curves(study.results, "table1_attention"))
    assert {point: (e.mean, e.seeds) for point, e in found.items()} == {"d": (4.0, 2), "f": (4.0, 2)}


def swept(rates):
    study = Study()
    for seed in range(3):
        for lr, accuracy in rates:
            study.own(study.point("table7_lr", f"{lr}", seed, lr=lr), accuracy)
    rows = final_evaluation(study.results.of("evaluations", "table7_lr"))
    return {e.id: e for e in sweet_spot(rows, "lr", "learning rate", "table7_lr")}


def test_a_middle_value_is_best_where_the_curve_bends_and_has_its_top_inside():
    made = swept(((1e-4, 0.3), (1e-3, 0.7), (1e-2, 0.5)))
    assert made["bend"].value == pytest.approx(30) and made["bend"].verdict == "agrees"
    assert made["small"].value == pytest.approx(40) and made["large"].value == pytest.approx(20)


def test_a_curve_that_bends_but_grows_throughout_has_no_best_value_among_those_tried():
    made = swept(((1e-4, 0.1), (1e-3, 0.6), (1e-2, 0.9)))["bend"]
    assert made.value > 0 and made.verdict == CANNOT_DECIDE
    assert "outside the values tried (0.0001 to 0.01)" in made.reason


def test_two_values_have_no_inner_one():
    made = swept(((1e-4, 0.5), (1e-3, 0.5)))
    assert {e.verdict for e in made.values()} == {NO_RUNS}
    assert "three values of learning rate" in made["bend"].reason


def crossed(seeds=3, without=()):
    """Two factors, whose effects on 100 items are 20 and 10 points, and half their interaction's difference 4."""
    made = []
    for seed in range(seeds):
        for a, b in ((x, y) for x in (-0.5, 0.5) for y in (-0.5, 0.5) if (seed, x, y) not in without):
            answers = correct(0.5 + 0.2 * a + 0.1 * b + 0.08 * a * b, 100)
            made.append({"token_shift": a > 0, "loss_name": "nelbo" if b > 0 else "mean", "seed": seed})
            made[-1] |= {"run": f"{seed}{a}{b}", "correct": pack(answers)}
    return pd.DataFrame(made)


def test_a_factorial_gives_back_its_planted_effects():
    found = factorial(crossed())
    assert [e.what for e in found] == ["token shift (True)", "loss (nelbo)", "token shift × loss"]
    assert [e.value for e in found] == pytest.approx([20, 10, 4])
    assert {(e.seeds, e.items) for e in found} == {(3, 100)}


def test_the_effects_of_a_factorial_are_as_uncertain_as_its_items():
    """All seeds agree, so that only items are uncertain: of 100, 10 count 1 and 20 count 1/2, the others 0."""
    effect, half = factorial(crossed())[0], 1.984 * 10 * np.sqrt(0.1 + 0.25 * 0.2 - 0.2**2)
    assert [effect.low, effect.high] == pytest.approx([20 - half, 20 + half], abs=0.05)


def test_a_factorial_of_one_seed_says_so():
    table = effect_table({"all": factorial(crossed(seeds=1))})
    assert set(table["found"]) <= {"decided, over the items of 1 seed", "undecided"}


def test_a_factorial_of_runs_that_answered_different_items_is_refused():
    rows = crossed(seeds=1)
    rows.loc[0, "correct"] = pack(correct(0.5, 90))
    with pytest.raises(ValueError, match=r"different items \(90 and 100\): evaluate them alike"):
        factorial(rows)


def test_a_factorial_leaves_out_a_seed_with_missing_cells_and_has_no_effects_without_one():
    missing = [(0, 0.5, 0.5)]
    assert {e.seeds for e in factorial(crossed(without=missing))} == {2}
    assert factorial(crossed(seeds=1, without=missing)) == [] and factorial(crossed().head(0)) == []


def gain(value, half=1.0, seeds=3):
    return Effect("", Mean(value, half / 4.303, 0.0, 2), seeds) if seeds else Effect("")  # half: of the interval


def test_the_crossing_is_interpolated_over_the_logarithm_of_the_tokens():
    assert crossing({1e6: gain(10), 4e6: gain(-10)}) == "near 2M"


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((gain(10), gain(1, 2), gain(-1, 2), gain(-10)), "near 2.8M"),  # decided before and after
        ((gain(10), gain(1, 2), gain(-1, 2)), "near 2.8M, undecided"),
        ((gain(10, seeds=2), gain(-10, seeds=2)), "near 1.4M, undecided"),  # a verdict needs three seeds
        ((gain(-10), gain(10)), "near 1.4M"),
        ((gain(10), gain(1, 2)), "undecided at 2M"),
        ((gain(10), gain(2)), "none up to 2M"),
        ((gain(10), gain(-10, seeds=0)), "none up to 1M"),
        ((gain(10, seeds=0),), "–"),
    ],
)
def test_a_crossing_is_only_claimed_where_both_signs_are_decided(gains, said):
    assert crossing({1e6 * 2**i: effect for i, effect in enumerate(gains)}) == said


def test_at_a_fixed_cost_answers_are_interpolated_item_by_item_and_short_curves_left_out():
    rows = [
        {"seed": seed, "block": block, "nfe": nfe, "correct": pack(correct(right, 10)), "accuracy": right}
        for seed, block, nfe, right in ((0, 4, 2.0, 0.2), (0, 4, 6.0, 0.6), (0, 8, 1.0, 0.5), (0, 8, 3.0, 0.5))
    ]
    found = at_cost(pd.DataFrame(rows), "nfe", ["block"], 3.0)
    assert list(found["block"]) == [4, 8] and list(found["accuracy"]) == pytest.approx([0.3, 0.5])
    assert found["correct"].iloc[0].tolist() == pytest.approx([0] * 4 + [0.25] * 4 + [1] * 2)
    assert list(at_cost(pd.DataFrame(rows), "nfe", ["block"], 5.0)["block"]) == [4]
