"""External validation: published numbers have a source, and whether ours agree is computed from the sign of both."""

import pytest
import yaml
from common import ROOT
from study_tables import Study, whole_study

from analysis.artefacts import external
from analysis.evidence.effect import AGREES, CANNOT_DECIDE, DISAGREES, NO_RUNS, UNDECIDED
from analysis.pages.claims import paper_numbers

PAPER = paper_numbers()
SECTIONS = yaml.safe_load((ROOT / "analysis" / "published.yaml").read_text(encoding="utf-8"))


def shifts(c, b, seeds=(0, 1, 2)):
    """Bidirectional rows of Table 1, without (c) and with (b) the token shift."""
    study = Study()
    for seed in seeds:
        study.own(study.point("table1_attention", "c", seed, attention_name="bidir"), c)
        study.own(study.point("table1_attention", "b", seed, attention_name="bidir"), b)
    return study.results


def of(results, method):
    return next(c for c in external.comparisons(results, PAPER) if c.published["method"] == method)


def test_every_published_number_has_its_scale_budget_source_and_a_sign_like_its_direction():
    published = [p for section in SECTIONS for p in section["published"]]
    assert len(published) > 10
    for p in published:
        texts = [p[key] for key in ("method", "source", "scale", "budget", "numbers")]
        assert all(isinstance(text, str) and text for text in texts) and isinstance(p["read"], bool)
        assert p["direction"] in (1, -1) and (p["value"] is None or p["value"] * p["direction"] > 0)


def test_every_comparison_of_ours_exists():
    found = external.comparisons(whole_study((0,)).results, PAPER)
    assert len(found) == sum(len(section["published"]) for section in SECTIONS)


def test_a_name_that_is_no_comparison_is_refused_with_those_that_are():
    with pytest.raises(
        ValueError, match=r"'shift/none' is no comparison of ours: choose CLAIM/EFFECT, or one of ar loss"
    ):
        external.ours("shift/none", Study().results, PAPER)


@pytest.mark.parametrize(("c", "b", "verdict"), [(0.2, 0.6, AGREES), (0.6, 0.2, DISAGREES), (0.5, 0.5, UNDECIDED)])
def test_ours_agrees_where_it_has_the_sign_of_the_published_difference(c, b, verdict):
    diffugpt = of(shifts(c, b), "DiffuGPT")
    assert diffugpt.published["value"] < 0 and diffugpt.verdict[0] == verdict
    assert diffugpt.ours.value == pytest.approx(100 * (c - b), abs=1)


def test_one_seed_decides_nothing_and_no_run_is_said():
    assert of(shifts(0.2, 0.6, (0,)), "DiffuGPT").verdict[0] == UNDECIDED
    assert of(Study().results, "DiffuGPT").verdict[0] == of(Study().results, "D2F").verdict[0] == NO_RUNS


def test_blocks_that_hold_whole_answers_decide_nothing_on_block_sizes():
    study = Study()
    for seed in range(3):
        for block, accuracy in ((4, 0.8), (32, 0.2)):
            run = study.point("figure3_block_size", f"block_size={block}", seed, block_size=block)
            study.own(run, accuracy, answer=6.0)
    assert of(study.results, "DreamReasoner").verdict[0] == CANNOT_DECIDE


def test_the_counts_are_those_of_the_verdicts():
    found = external.comparisons(shifts(0.2, 0.6), PAPER)
    agree = sum(c.verdict[0] == AGREES for c in found)
    assert agree == 1 and external.counts(found).startswith(
        f"Of {len(found)} published differences, ours agree with 1 "
    )
