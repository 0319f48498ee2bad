"""Intervals, tests and verdicts: closed forms, planted effects, coverage, and what every verdict asks for."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from study_tables import correct

from analysis import coverage
from analysis.evidence.causes import budget_sentence, family_sentence
from analysis.evidence.contrasts import bend, slope
from analysis.evidence.effect import (
    AGREES,
    CANNOT_DECIDE,
    DISAGREES,
    NO_DIFFERENCE,
    NO_RUNS,
    SAME,
    UNDECIDED,
    Effect,
    Part,
)
from analysis.evidence.geometry import beyond_ceiling, ceiling
from analysis.evidence.intervals import Mean, holm, over_seeds, over_seeds_and_items
from analysis.evidence.stats import estimate
from analysis.tables.results import pack, pack_families, unpack, unpack_families

pytestmark = pytest.mark.trains


def test_the_interval_and_the_p_value_over_seeds_are_students():
    values = [1.0, 2.0, 6.0]
    mean, half = over_seeds(values), student.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert (mean.value, mean.low, mean.high) == pytest.approx((3, 3 - half, 3 + half))
    assert mean.p == pytest.approx(ttest_1samp(values, 0).pvalue)


def test_one_seed_has_no_interval_over_seeds_and_equal_seeds_one_without_width():
    assert np.isnan([over_seeds([2.0]).low, over_seeds([2.0]).p]).all()
    equal = over_seeds([2.0, 2.0, 2.0])
    assert (equal.low, equal.high, equal.p) == (2, 2, 0) and over_seeds([0.0, 0.0]).p == 1


def test_the_p_value_is_5_percent_where_the_interval_ends():
    mean = Mean(5.0, 0.8, 1.1, 2, 348)
    assert Mean(mean.half(0.025), 0.8, 1.1, 2, 348).p == pytest.approx(0.05)
    assert mean.p_above(mean.low) == pytest.approx(0.025) and mean.p_above(9.0) > 0.5
    assert mean.p_within(mean.value + mean.half(0.05)) == pytest.approx(0.05)  # the 90 % interval just fits


def test_without_spread_over_items_the_interval_is_students_over_seeds():
    made = over_seeds_and_items(np.array([[0.1] * 50, [0.2] * 50, [0.4] * 50]))
    assert (made.low, made.high) == pytest.approx((over_seeds([0.1, 0.2, 0.4]).low, over_seeds([0.1, 0.2, 0.4]).high))


def test_with_one_seed_the_interval_is_students_over_items():
    differences = correct(0.8, 400).astype(float) - correct(0.5, 400).astype(float)
    made, whole = over_seeds_and_items(differences[None]), over_seeds(differences)
    assert (made.low, made.high) == pytest.approx((whole.low, whole.high))


def test_noise_of_seeds_on_items_is_counted_once():
    """Where items differ in nothing and seeds neither, all variance is noise: the seeds' spread holds all of it."""
    noise = np.random.default_rng(0).standard_normal((400, 5, 60))
    variances = [(m.seed_error**2, m.item_error**2) for m in map(over_seeds_and_items, noise)]
    by_seed, by_item = np.mean(variances, 0)
    assert by_seed == pytest.approx(1 / 300, rel=0.1) and by_item < 0.35 / 300


def test_a_constant_item_effect_is_all_of_the_item_error():
    values = np.tile(np.random.default_rng(0).standard_normal(60), (3, 1))
    made = over_seeds_and_items(values)
    assert made.seed_error == pytest.approx(0) and made.item_error == pytest.approx(values[0].std(ddof=1) / np.sqrt(60))


def test_what_families_differ_in_is_no_error():
    families = np.repeat([0, 1, 2], 20)
    made = over_seeds_and_items(np.tile(10.0 * families, (3, 1)), families)
    assert (made.value, made.low, made.high) == pytest.approx((10, 10, 10))
    assert over_seeds_and_items(np.tile(10.0 * families, (3, 1))).item_error > 1
    with pytest.raises(ValueError, match="59 families are given for 60 items"):
        over_seeds_and_items(np.zeros((3, 60)), families[:-1])


def test_pairing_by_item_counts_only_items_that_differ():
    """Two models that are right on the same half of the items differ by nothing, and it is known exactly."""
    made = over_seeds_and_items(np.zeros((3, 90)))
    assert (made.value, made.low, made.high, made.p) == (0, 0, 0, 1)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    case = coverage.Case(3, 360, 0.02, interaction=False)
    assert 0.94 <= coverage.coverage(case, draws=1000)[coverage.METHOD][0] <= 0.97


# Three seeds, items × arms: the method errs on the wide side (docs/results/coverage.md).
WIDE = {coverage.Case(3, 360, sd, interaction=True) for sd in (0.0, 0.02)}


@pytest.mark.slow
@pytest.mark.parametrize("case", coverage.CASES, ids=str)
def test_coverage_is_94_to_97_percent(case):
    low, high = coverage.ASKED
    assert low <= coverage.coverage(case)[coverage.METHOD][0] <= (0.98 if case in WIDE else high)


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_more_seeds_detect_less_until_only_items_are_left():
    noisy, few_items = Mean(5, 2.0, 0.5, 2, 348), Mean(5, 0.5, 2.0, 2, 348)
    seeds = noisy.seeds_to_detect(3.0)
    assert noisy.with_seeds(seeds).detectable <= 3 < noisy.with_seeds(seeds - 1).detectable
    assert few_items.seeds_to_detect(3.0) is None


def test_one_seed_shows_its_own_interval_over_items():
    rows = pd.DataFrame({"accuracy": [0.5], "accuracy_low": [0.4], "accuracy_high": [0.6], "accuracy_n": [90]})
    made = estimate(rows, "accuracy", 100)
    assert (made.mean, made.low, made.high, made.seeds, made.n, made.over) == (50, 40, 60, 1, 90, "items")


def test_several_seeds_show_the_interval_over_seeds_and_a_proportion_stays_within_its_bounds():
    rows = pd.DataFrame({"accuracy": [1.0, 0.9, 0.8], "accuracy_n": [90] * 3})
    made = estimate(rows, "accuracy", 100)
    assert made.mean == pytest.approx(90) and made.high == 100 and made.over == "seeds" and made.seeds == 3


def test_a_cell_and_a_claim_have_one_interval():
    outcomes = np.random.default_rng(0).random((3, 90)) < 0.6
    families = pack_families(np.repeat(["a", "b"], 45), np.ones(90))
    rows = pd.DataFrame({"accuracy": outcomes.mean(1), "correct": list(map(pack, outcomes)), "seed": range(3)})
    made = estimate(rows.assign(families=families), "accuracy", 100)
    same = over_seeds_and_items(100.0 * outcomes, np.repeat([0, 1], 45))
    assert (made.low, made.high) == pytest.approx((same.low, same.high)) and made.over == "seeds and items"


def test_a_measure_whose_runs_record_its_interval_over_items_has_both_errors():
    rows = pd.DataFrame({"cloze": [0.5] * 3, "cloze_low": [0.4] * 3, "cloze_high": [0.6] * 3})
    made = estimate(rows, "cloze", 100)
    assert (made.low, made.high, made.over) == (pytest.approx(40), pytest.approx(60), "seeds and items")


def test_what_was_not_measured_has_no_estimate():
    assert estimate(pd.DataFrame({"accuracy": [np.nan]}), "accuracy") is None
    assert estimate(pd.DataFrame({"tpf": [1.0]}), "accuracy") is None


def effect(value=5.0, seed_error=0.2, item_error=1.0, seeds=3, **facts):
    return Effect("x", Mean(value, seed_error, item_error, seeds - 1, 348), seeds, 360, **facts)


@pytest.mark.parametrize(
    ("made", "verdict", "reason"),
    [
        (effect(8.0), AGREES, "3 seeds × 360 items; p < 0.001"),
        (effect(-8.0), DISAGREES, "3 seeds × 360 items; p < 0.001"),
        (effect(8.0, p_holm=0.06), UNDECIDED, "the interval contains 0"),  # what the correction takes away
        (effect(1.0), UNDECIDED, "the interval contains 0"),
        (effect(8.0, seeds=2), UNDECIDED, "over items it agrees, a verdict needs 3 seeds"),
        (effect(0.3, margin=3.0, paper=0.7), NO_DIFFERENCE, "within ±3.0 points, p = 0.0"),
        (effect(0.3, margin=3.0), NO_DIFFERENCE, "within ±3.0 points"),
        (effect(0.3, margin=3.0, paper=9.5), DISAGREES, "where the paper's effect would be 9.5 points"),
        (effect(2.0, 1.0, margin=3.0, paper=9.5), UNDECIDED, "detect 6.1 points; 3.0 points would take 24 seeds"),
        (effect(2.0, 1.0, margin=3.0, paper=2.0), CANNOT_DECIDE, "6.1 points, more than the paper's 2.0 points"),
        (effect(2.0, 0.1, 2.0, margin=3.0, paper=9.5), UNDECIDED, "would take more items, not more seeds"),
        (effect(1.0, arms=(3.0, 2.0)), CANNOT_DECIDE, "both arms are below 5 % (2.0 and 3.0 %)"),
        (
            effect(1.0, 1.0, margin=3.0, parent=96.0, arms=(95.0, 94.0)),
            CANNOT_DECIDE,
            "within 3.0 points of their parent",
        ),
        (effect(0.3, margin=3.0, paper=9.5, parent=96.0, arms=(95.0, 94.7)), CANNOT_DECIDE, "of 96.0 %"),
        (effect(0.3, margin=3.0, paper=0.7, parent=96.0, arms=(95.0, 94.7)), NO_DIFFERENCE, "within ±3.0 points"),
        (effect(0.3, margin=3.0, paper=0.7, arms=(2.0, 1.7)), CANNOT_DECIDE, "below 5 %"),
        (effect(0.3, margin=3.0, expectation=SAME, arms=(2.0, 1.7)), CANNOT_DECIDE, "below 5 %"),
        (effect(8.0, obstacle="one forward per block"), CANNOT_DECIDE, "one forward per block"),
        (effect(0.3, margin=3.0, expectation=SAME), AGREES, "within ±3.0 points"),
        (effect(-9.0, margin=3.0, expectation=SAME), DISAGREES, "outside ±3.0 points"),
        (effect(2.5, margin=3.0, expectation=SAME), UNDECIDED, "detect 3.0 points; 3.0 points would take 4 seeds"),
        (Effect("x", missing=("table1 b", "table1 c")), NO_RUNS, "to run: table1 b, table1 c"),
        (Effect("x", over_seeds([1.0]), 1), UNDECIDED, "1 seed; a verdict needs 3 seeds"),
    ],
)
def test_every_verdict_says_what_decides_it(made, verdict, reason):
    assert made.verdict == verdict and reason in made.reason


def test_no_difference_needs_a_margin():
    with pytest.raises(ValueError, match=r"a margin is needed: add one to paper\.yaml"):
        assert effect(expectation=SAME).verdict


def test_the_papers_effect_is_scaled_to_this_parent():
    made = effect(4.8, parent=96.0, paper=9.46, paper_parent=41.79)
    assert made.percent_of_parent[0] == pytest.approx(5.0) and made.paper_percent == pytest.approx(22.64, abs=0.01)
    assert made.paper_here == pytest.approx(21.73, abs=0.01) and replace(made, parent=None).paper_here == 9.46


def test_a_quadratic_contrast_sees_no_line_and_a_slope_no_bend():
    x = np.array([1.0, 2.0, 4.0, 5.0])
    assert bend(x) @ (3 * x + 1) == pytest.approx(0) and bend(x) @ -((x - 3) ** 2) > 0
    assert bend(x)[bend(x) > 0].sum() == pytest.approx(1) and bend(x).sum() == pytest.approx(0)
    assert slope(x) @ (3 * x + 1) == pytest.approx(3) and bend([0, 1, 2]) == pytest.approx([-0.5, 1, -0.5])


def test_the_ceiling_of_tokens_per_forward_is_one_forward_per_block():
    """As the review of the first study counted from its answers: 3.95 with blocks of 8, 1.81 with blocks of 2."""
    assert ceiling(6.8, 8) == pytest.approx(3.95, abs=0.03) and ceiling(6.8, 2) == pytest.approx(1.75, abs=0.01)
    assert ceiling(60, 1) == 1 and beyond_ceiling(5.6, 60, 8) == "" and beyond_ceiling(2.8, 6.8, 8) == ""
    assert "answers of 6.8 tokens in blocks of 8 allow at most 3.94" in beyond_ceiling(4.0, 6.8, 8)


def at_budgets(*means):
    return [(10**6 * 2**i, Effect("g − f", mean, 3)) for i, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ((over_seeds([-10, -11, -9]), over_seeds([5.0, 6.0, 4.0])), "as in the paper, so the budget is the cause"),
        ((over_seeds([-10, -11, -9]), over_seeds([0.0, 1.0, -1.0])), "shrinks until it is not significant"),
        ((over_seeds([-20, -21, -19]), over_seeds([-5, -6, -4])), "shrinks but does not vanish"),
        ((over_seeds([-5, -6, -4]), over_seeds([-20, -21, -19])), "grows: the budget is not the cause"),
        ((over_seeds([-5, -9, -1]), over_seeds([-4, -9, -1])), "not shown to be the cause"),
    ],
)
def test_a_cause_is_read_off_the_budgets(means, said):
    text = budget_sentence(at_budgets(*means), lambda e: f"{e.value:g}")
    assert said in text and "at 1M tokens" in text and "at 2M tokens" in text
    assert budget_sentence(at_budgets(*means[:1]), str) == ""


def test_families_are_told_by_the_length_of_their_answers():
    parts = (Part("sort", 4.0, over_seeds([-8, -9, -7])), Part("running_sum", 60.0, over_seeds([1, -1, 0])))
    text = family_sentence(effect(by_family=parts))
    assert "below 0 in 1 and above in 0 of 2" in text
    assert (
        "−8.0 (−10.5 to −5.5) in sort, of 4 tokens an answer and +0.0" in text and "running sum, of 60 tokens" in text
    )
    assert family_sentence(effect()) == ""


@pytest.mark.parametrize("items", [0, 1, 7, 8, 9, 360])
def test_outcomes_are_packed_one_bit_an_item_and_come_back(items):
    outcomes = np.random.default_rng(items).random(items) < 0.5
    packed = pack(outcomes)
    assert (unpack(packed) == outcomes).all() and len(packed) <= 4 + items // 4 + 2


def test_families_are_packed_and_come_back_with_the_length_of_their_answers():
    packed = pack_families(["add", "add", "sort", "add"], [1.0, 2.0, 6.0, 3.0])
    assert packed == "add 2 1.5, sort 1 6, add 1 3"
    found = unpack_families(packed)
    assert {name: (tokens, items.tolist()) for name, (tokens, items) in found.items()} == {
        "add": (2.0, [0, 1, 3]),
        "sort": (6.0, [2]),
    }
