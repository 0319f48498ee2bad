"""Intervals and verdicts: closed forms, planted effects, and how often nothing is called something."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from study_tables import correct

from analysis.evidence.stats import (
    AGREES,
    DISAGREES,
    NO_RUNS,
    UNDECIDED,
    Effect,
    estimate,
    over_seeds,
    overall_verdict,
    paired_interval,
)
from analysis.tables.results import pack, unpack

pytestmark = pytest.mark.trains


def test_the_interval_over_seeds_is_students():
    mean, low, high = over_seeds([1.0, 2.0, 6.0])
    half = student.ppf(0.975, 2) * np.std([1, 2, 6], ddof=1) / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half))


def test_one_seed_has_no_interval_over_seeds_and_equal_seeds_one_without_width():
    assert np.isnan(over_seeds([2.0])[1:]).all()
    assert over_seeds([2.0, 2.0, 2.0]) == (2, 2, 2)


def test_one_seed_shows_its_own_interval_over_items():
    rows = pd.DataFrame({"accuracy": [0.5], "accuracy_low": [0.4], "accuracy_high": [0.6], "accuracy_n": [90]})
    made = estimate(rows, "accuracy", 100)
    assert (made.mean, made.low, made.high, made.seeds, made.n, made.over) == (50, 40, 60, 1, 90, "items")


def test_several_seeds_show_the_interval_over_seeds_and_a_proportion_stays_within_its_bounds():
    rows = pd.DataFrame({"accuracy": [1.0, 0.9, 0.8], "accuracy_n": [90] * 3})
    made = estimate(rows, "accuracy", 100)
    assert made.mean == pytest.approx(90) and made.high == 100 and made.over == "seeds" and made.seeds == 3


def test_what_was_not_measured_has_no_estimate():
    assert estimate(pd.DataFrame({"accuracy": [np.nan]}), "accuracy") is None
    assert estimate(pd.DataFrame({"tpf": [1.0]}), "accuracy") is None


def test_without_spread_over_items_the_paired_interval_is_students_over_seeds():
    differences = np.array([[0.1] * 50, [0.2] * 50, [0.4] * 50])
    assert paired_interval(differences, resamples=200_000) == pytest.approx(over_seeds([0.1, 0.2, 0.4]), abs=0.01)


def test_with_one_seed_the_paired_interval_is_the_bootstrap_over_items():
    differences = (correct(0.8, 400).astype(float) - correct(0.5, 400).astype(float))[None]
    mean, low, high = paired_interval(differences, resamples=20_000)
    half = 1.96 * differences.std() / 20
    assert mean == pytest.approx(0.3) and (low, high) == pytest.approx((mean - half, mean + half), abs=0.005)


def test_a_paired_interval_does_not_depend_on_those_before_it():
    differences = np.random.default_rng(0).integers(-1, 2, (3, 60)).astype(float)
    first = paired_interval(differences)
    paired_interval(-differences)
    assert paired_interval(differences) == first


def test_pairing_by_item_counts_only_items_that_differ():
    """Two models that are right on the same half of the items differ by nothing, and it is known exactly."""
    same = correct(0.5)
    assert paired_interval(np.zeros((3, len(same)))) == (0, 0, 0)


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_a_difference_that_is_not_there_is_called_real_in_about_one_case_of_twenty(spread):
    """Three seeds whose accuracy varies by `spread` beyond what the items do."""
    rng = np.random.default_rng(0)
    wrong = 0
    for trial in range(300):
        chance = np.clip(0.6 + spread * rng.standard_normal((2, 3, 1)), 0, 1)
        first, second = rng.random((2, 3, 200)) < chance
        low, high = paired_interval(first.astype(float) - second.astype(float), resamples=500, seed=trial)[1:]
        wrong += low > 0 or high < 0
    assert wrong / 300 < 0.08


@pytest.mark.parametrize(("sign", "verdict"), [(1, AGREES), (-1, DISAGREES)])
def test_a_planted_difference_is_found_with_its_sign(sign, verdict):
    rng = np.random.default_rng(1)
    first, second = rng.random((3, 300)) < 0.5 + 0.1 * sign, rng.random((3, 300)) < 0.5 - 0.1 * sign
    value, low, high = paired_interval(first.astype(float) - second.astype(float))
    assert Effect("x", value, low, high, seeds=3).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "seeds", "verdict"),
    [
        (0.1, 0.3, 3, AGREES),
        (-0.3, -0.1, 3, DISAGREES),
        (-0.1, 0.3, 3, UNDECIDED),
        (0.0, 0.3, 3, UNDECIDED),
        (0.1, 0.3, 2, UNDECIDED),
        (np.nan, np.nan, 1, UNDECIDED),
        (np.nan, np.nan, 3, UNDECIDED),
        (0.1, 0.3, 0, NO_RUNS),
    ],
)
def test_a_verdict_needs_an_interval_without_0_and_three_seeds(low, high, seeds, verdict):
    assert Effect("x", 0.2, low, high, seeds).verdict == verdict


def test_what_a_verdict_rests_on_is_said():
    assert Effect("x", 0.2, 0.1, 0.3, 1, 90).why == "1 seed × 90 items; over items it agrees, a verdict needs 3 seeds"
    assert Effect("x", 0.2, -0.1, 0.3, 3, 90).why == "3 seeds × 90 items; the interval holds 0"
    assert Effect("x", missing=("table1 b", "table1 c")).why == "to run: table1 b, table1 c"


def effects(*verdicts):
    made = {AGREES: Effect("a", 1, 1, 1, 3), DISAGREES: Effect("d", -1, -1, -1, 3)}
    made |= {UNDECIDED: Effect("u", 0, -1, 1, 3), NO_RUNS: Effect("n")}
    return [made[v] for v in verdicts]


def test_a_claim_of_several_comparisons_agrees_where_all_do_and_disagrees_where_one_does():
    assert overall_verdict(effects(AGREES, AGREES)) == AGREES
    assert overall_verdict(effects(AGREES, DISAGREES, NO_RUNS)) == DISAGREES
    assert overall_verdict(effects(AGREES, UNDECIDED)) == UNDECIDED
    assert overall_verdict(effects(AGREES, NO_RUNS, UNDECIDED)) == NO_RUNS
    assert overall_verdict([]) == NO_RUNS


@pytest.mark.parametrize("items", [0, 1, 7, 8, 9, 360])
def test_outcomes_are_packed_one_bit_an_item_and_come_back(items):
    outcomes = np.random.default_rng(items).random(items) < 0.5
    packed = pack(outcomes)
    assert (unpack(packed) == outcomes).all() and len(packed) <= 4 + items // 4 + 2
