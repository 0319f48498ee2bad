"""Decision accuracy: pairs that are ordered on both sides count, ties are named, and what was not run is said."""

import pytest
from study_tables import Study

from analysis.artefacts import decision_accuracy
from analysis.evidence.decisions import OPPOSITE, SAME, TIE, Contest, Order, Pair
from analysis.pages.claims import paper_numbers

PAPER = paper_numbers()


def pair(here, there, half=1.0):
    return Pair("a", "b", Order(here, here - half, here + half), Order(there, there - half, there + half))


def contests(study):
    return {contest.name: contest for contest in decision_accuracy.contests(study.results, PAPER)}


def budgets(*choices, seeds=(0, 1, 2)):
    """Points at the base budget and at four times it: (options, accuracy here, accuracy there)."""
    study = Study()
    for seed in seeds:
        for i, (options, here, there) in enumerate(choices):
            study.own(study.point("table1_attention", "fgdbc"[i], seed, **options), here)
            more = {"tokens": 4000, "examples": 400}
            study.own(study.point("shift_by_budget", f"{i} at four times", seed, **options | more), there)
    return study


def test_a_pair_is_ordered_only_where_both_intervals_exclude_zero():
    assert [pair(*values).outcome for values in ((3, 3), (-3, -2), (3, -3), (3, 0.5), (0.5, -3), (0, 0))] == [
        *(SAME, SAME, OPPOSITE, TIE, TIE, TIE)
    ]


def test_ties_are_neither_right_nor_wrong_and_means_count_them():
    contest = Contest("there", 4, (pair(3, 3), pair(3, 3), pair(3, -3), pair(0.5, -3)))
    share, low, high = contest.accuracy
    assert share == pytest.approx(2 / 3) and 0 < low < share < high < 1 and contest.by_means == 0.5
    assert Contest("there", 4, (pair(0.1, 3),)).accuracy is None


def test_pairs_of_few_points_say_less_than_as_many_independent_ones():
    pairs = (pair(3, 3),) * 6
    few, many = (Contest("there", points, pairs).accuracy for points in (3, 7))
    assert few[1] < many[1] and few[2] == many[2] == 1.0


def test_a_difference_below_a_point_in_the_paper_is_a_tie():
    assert [Order.printed(x).sign for x in (0.9, -0.9, 1.1, -1.1)] == [0, 0, 1, -1]


@pytest.mark.trains
def test_orderings_are_compared_at_four_times_the_budget():
    shift, plain, noisy = {"token_shift": True}, {}, {"attention_name": "block_noisy"}
    found = contests(budgets((shift, 0.8, 0.7), (plain, 0.5, 0.9), (noisy, 0.2, 0.3)))["4 times the budget"]
    assert (found.points, [p.outcome for p in found.pairs]) == (3, [OPPOSITE, SAME, SAME])


def test_a_point_at_another_budget_than_four_times_is_left_out():
    study = budgets(({"token_shift": True}, 0.8, 0.7), ({}, 0.5, 0.9))
    for row in study.rows["runs"]:
        row["examples"] = 300 if row["examples"] == 400 else row["examples"]
    assert contests(study)["4 times the budget"].pairs == ()


def test_orderings_are_compared_at_another_size_of_the_parent():
    study = Study()
    for seed in range(3):
        for name, options, here, there in (("f", {"token_shift": True}, 0.8, 0.6), ("g", {}, 0.5, 0.4)):
            study.own(study.point("table1_attention", name, seed, **options), here)
            large = {"parent": "f01", "parameters": 4_200_000}
            study.own(study.point("shift_by_setting", f"{name} large", seed, **options | large), there)
    assert [p.outcome for p in contests(study)["a parent of 4.2M parameters"].pairs] == [SAME]


@pytest.mark.trains
def test_the_order_of_the_rows_is_compared_with_the_papers():
    study = Study()
    for seed in range(3):
        for name, accuracy in (("d", 0.7), ("f", 0.5), ("b", 0.2)):
            study.own(study.point("table1_attention", name, seed, attention_name=name), accuracy)
    found = {(p.first, p.second): p.outcome for p in contests(study)["the paper"].pairs}
    assert found == {("row b", "row d"): SAME, ("row b", "row f"): SAME, ("row d", "row f"): OPPOSITE}


def test_what_was_not_run_is_said():
    study = Study()
    study.own(study.point("table1_attention", "b"), 0.5)
    table = decision_accuracy.summary(decision_accuracy.contests(study.results, PAPER)).set_index("against")
    assert set(table["pairs"]) == {"no runs"} and set(table["decision accuracy %"]) == {"–"}
