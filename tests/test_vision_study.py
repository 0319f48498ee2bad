"""The study of vision-language parents: its sweeps compose, and its page says what its results give."""

import pytest
from common import ROOT
from study_tables import Study, correct

from analysis import vision
from analysis.artefacts import artefacts
from analysis.evidence.effect import AGREES, NO_DIFFERENCE, NO_RUNS
from analysis.pages.claims import evaluate_claims
from analysis.plan.sweep import load_sweep
from dlm.data.scenes.rows import Scenes

SWEEPS = sorted((ROOT / "sweeps" / "vlm").glob("*.yaml"))
MODULES = artefacts("vlm")


def study(seeds=(0, 1, 2)) -> Study:
    """Levels per block are better by 20 points, three axes by 40, blocks by 10 for each halving; the start makes no
    difference."""
    made = Study()
    for seed in seeds:
        for name, accuracy in (("diffusionvl", 0.9), ("small_budget", 0.9), ("vlm_control", 0.9)):
            run = made.point("vlm_recipes", name, seed, label=name)
            made.own(run, accuracy + 0.01 * seed)
            for threshold in (1.0, 0.5):
                at = {"threshold": threshold, "setting": f"{threshold}", "tpf": 2.0}
                made.evaluation(run, correct(0.8), "vlm_recipes", "threshold", **at)
        for block, accuracy in ((1, 0.9), (4, 0.7), (8, 0.6)):
            run = made.point("vlm_table5_block_size", f"block_size={block}", seed, block_size=block)
            made.own(run, accuracy + 0.01 * seed)
            made.evaluation(run, correct(0.5), "vlm_table5_block_size", "threshold", threshold=0.5, setting="0.5")
        for name, accuracy in (("block", 0.8), ("sequence", 0.6), ("full", 0.3)):
            made.own(made.point("vlm_table6_noise", name, seed), accuracy + 0.01 * seed)
        for name in ("prompt", "absolute"):
            made.own(made.point("vlm_anchor", name, seed, label=name), 0.8 + 0.01 * seed)
        for name, accuracy in (("three", 0.9), ("one", 0.5), ("three_shift", 0.9), ("one_shift", 0.6)):
            made.own(made.point("vlm_positions", name, seed, label=name), accuracy + 0.01 * seed)
        for name in ("from_vlm", "from_lm"):  # whose FLOPs are not known, as those of every run with images
            made.own(made.point("vlm_table3_start", name, seed, train_flops=None), 0.8 + 0.01 * seed)
    return made


def test_every_artefact_reads_sweeps_that_exist_and_every_claim_has_its_function():
    known = {path.stem for path in SWEEPS}
    assert known == {sweep for module in MODULES.values() for sweep in module.SWEEPS}
    assert len({module.PLACE for module in MODULES.values()}) == len(MODULES)
    for claim in vision.numbers()["claims"]:
        assert callable(getattr(MODULES[claim["from"]], claim["id"]))


def test_claims_find_what_was_planted():
    found = {c.id: c.verdict for c in evaluate_claims(study().results, vision.numbers(), MODULES)}
    assert found["block_level_noise_is_best"] == found["small_blocks_are_better"] == AGREES
    assert found["positions_are_worth_keeping"] == AGREES
    assert found["conversion_keeps_accuracy"] in (AGREES, NO_DIFFERENCE)
    assert found["a_language_model_is_a_start"] == NO_DIFFERENCE
    assert found["a_prompt_need_not_share_a_block"] in (AGREES, NO_DIFFERENCE)


def test_claims_without_runs_say_so():
    assert {c.verdict for c in evaluate_claims(Study().results, vision.numbers(), MODULES)} == {NO_RUNS}


@pytest.mark.trains
def test_the_page_has_every_table_beside_the_papers_and_names_what_is_not_there(tmp_path):
    made = study((0,))
    made.point("vlm_recipes", "bard_vl", 0, state="not trained")
    text = vision.write(made.results, tmp_path).read_text()
    assert all(f"## {module.TITLE}" in text for module in MODULES.values())
    assert "Not there: vlm_recipes bard_vl, seed 0: not trained." in text and "| 82.8 |" in text
    assert (tmp_path / "figures" / "vlm_table7_threshold-1.svg").exists()


def test_evaluations_of_scenes_ask_every_family_and_points_know_it():
    assert Scenes.asked == ("scenes.list", "scenes.grid", "scenes.count", "scenes.at", "scenes.words")
    (block, *_) = load_sweep(ROOT / "sweeps" / "vlm" / "vlm_table6_noise.yaml", ["seed=0"]).points
    assert block.evaluated_with["families"] == list(Scenes.asked)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["embedded", "quick", "smoke", "paper"])
def test_every_sweep_composes_at_every_scale_and_its_points_are_distinct_runs(scale):
    for path in SWEEPS:
        points = load_sweep(path, [f"scale={scale}", "seed=0"]).points
        assert len({p.run for p in points}) == len(points) and all(
            "Scenes" in p.config["data"]["_target_"] for p in points
        )
