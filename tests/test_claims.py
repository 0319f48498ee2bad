"""The paper's claims, decided by hand-made results: planted effects, ties, and what cannot be decided."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from common import ROOT
from shown import MODULES, PAPER
from study_tables import Study, correct, whole_study

from analysis.artefacts.table2_masking import parallel
from analysis.evidence.effect import CANNOT_DECIDE, EXPECTATIONS, NO_DIFFERENCE, NO_RUNS, UNDECIDED, Effect
from analysis.pages.claims import count_text, evaluate_claims, with_primary
from analysis.tables.results import DLM, Results, columns

pytestmark = pytest.mark.trains  # takes seconds

CLAIMS = {claim["id"]: claim["from"] for claim in PAPER["claims"]}


def test_the_papers_claims_are_all_there_each_with_the_function_that_decides_it():
    assert len(CLAIMS) == 14
    for claim, name in CLAIMS.items():
        assert callable(getattr(MODULES[name], claim, None)), claim


def test_claims_without_runs_say_what_is_missing():
    for claim in evaluate_claims(Study().results, PAPER, MODULES):
        assert claim.verdict == NO_RUNS and all(e.reason.startswith("to run: ") for e in claim.effects), claim.id


def test_claims_of_one_seed_are_undecided(of_one_seed):
    claims = evaluate_claims(of_one_seed, PAPER, MODULES)
    assert {claim.verdict for claim in claims} == {UNDECIDED}


def test_claims_find_planted_effects(results):
    """The study is made so that the rows b to i grow better, the contrary of what the paper says of LoRA."""
    verdicts = {claim.id: claim.verdict for claim in evaluate_claims(results, PAPER, MODULES)}
    against = {"lora_is_behind_full"}
    assert {name for name, verdict in verdicts.items() if verdict == "disagrees"} == against
    assert {name for name, verdict in verdicts.items() if verdict == "agrees"} == set(CLAIMS) - against


def test_claims_with_nothing_planted_are_not_decided():
    study = Study()
    rng = np.random.default_rng(5)
    for seed in range(3):
        for point in "bcdefghi":
            run = study.point("table1_attention", point, seed)
            study.own(run, 0.5, outcomes=rng.random(200) < 0.5)
            study.drift(run, 0.3 + 0.02 * rng.standard_normal())
    claims = {c.id: c for c in evaluate_claims(study.results, PAPER, MODULES)}
    open_ones = ("block_beats_bidir", "clean_context_helps", "no_token_shift_helps", "lora_is_behind_full")
    assert {claims[name].verdict for name in (*open_ones, "block_drifts_less")} <= {UNDECIDED, CANNOT_DECIDE}


def test_every_claim_names_its_primary_comparison_beforehand(results):
    for claim, plan in zip(evaluate_claims(results, PAPER, MODULES), PAPER["claims"], strict=True):
        primary = plan["primary"]
        assert claim.primary == claim.effects[0] and [e.primary for e in claim.effects].count(True) == 1
        assert (claim.primary.id, claim.primary.margin) == (primary["effect"], primary["margin"])
        assert primary["expect"] in EXPECTATIONS and primary["margin"] > 0 and claim.why.endswith("."), claim.id
        assert claim.verdict == claim.primary.verdict and len({e.id for e in claim.effects}) == len(claim.effects)


def test_primary_comparisons_are_corrected_over_all_claims(results):
    claims = evaluate_claims(results, PAPER, MODULES)
    assert all(claim.primary.p_holm >= claim.primary.p for claim in claims)
    worst = max(claims, key=lambda c: c.primary.p).primary
    assert worst.p_holm >= worst.p and min(c.primary.p_holm for c in claims if c.primary.p) > 0
    assert all(effect.p_holm is None for claim in claims for effect in claim.secondary)


def test_a_primary_comparison_that_nobody_makes_is_refused():
    plan = {"effect": "a-b", "expect": "greater", "margin": 3, "unit": "points", "why": "So."}
    claim, made = {"id": "some", "primary": plan}, [Effect("x", id="c-d")]
    with pytest.raises(
        ValueError, match=r"claim some: its primary effect is a-b \(points\), not one of c-d \(points\)"
    ):
        with_primary(claim, made)
    with pytest.raises(ValueError, match="claim some: primary has .'effect'.*it needs"):
        with_primary({"id": "some", "primary": {"effect": "a-b"}}, made)


@pytest.mark.trains
def test_causes_are_made_from_runs_where_a_claim_disagrees():
    """Dropping the shift costs 40 points at 1,000 tokens, and 10 at 4,000."""
    study = Study()
    for seed in range(3):
        for point, shift in (("f", True), ("g", False)):
            run = study.point("table1_attention", point, seed, token_shift=shift)
            study.own(run, 0.7 if shift else 0.3)
            for tokens, accuracy in ((1000, 0.3), (4000, 0.6)):
                run = study.point("shift_by_budget", f"{shift} {tokens}", seed, token_shift=shift, tokens=tokens)
                study.own(run, 0.7 if shift else accuracy)
    claims = {c.id: c for c in evaluate_claims(study.results, PAPER, MODULES)}
    assert claims["no_token_shift_helps"].verdict == "disagrees"
    (cause,) = claims["no_token_shift_helps"].causes
    assert "−40.0 points" in cause and "at 0.001M tokens; −10.0 points" in cause and "shrinks but does not" in cause
    assert not any(c.causes for c in claims.values() if c.verdict != "disagrees")


def test_claims_are_counted_in_words(results):
    counted = count_text(evaluate_claims(results, PAPER, MODULES))
    assert counted == {"agrees": "13 claims agree", "disagrees": "1 claim disagrees"}
    assert list(count_text(evaluate_claims(Study().results, PAPER, MODULES)).values()) == ["14 claims have no runs"]


def test_the_committed_results_give_every_claim_a_verdict():
    results = Results.load(ROOT / "reports" / "ablation" / "results.json")
    claims = evaluate_claims(results, PAPER, MODULES)
    assert len(claims) == len(CLAIMS) and all(claim.reason for claim in claims)


def test_a_tie_is_undecided():
    study = Study()
    for seed in range(3):
        for point in "fg":
            study.own(study.point("table1_attention", point, seed), 0.5)
    tie = MODULES["table1_attention"].no_token_shift_helps(study.results, PAPER)[0]
    assert (tie.value, tie.low, tie.high, tie.verdict) == (0, 0, 0, UNDECIDED)


def test_a_tie_within_the_margin_is_no_difference():
    study = Study()
    for seed in range(3):
        for point in "fg":
            study.own(study.point("table1_attention", point, seed), 0.5)
    claims = {c.id: c for c in evaluate_claims(study.results, PAPER, MODULES)}
    assert claims["no_token_shift_helps"].verdict == NO_DIFFERENCE


def test_lora_is_compared_at_the_learning_rate_of_the_lowest_validation_bound():
    study = Study()
    for seed in range(3):
        study.own(study.point("table1_attention", "g", seed), 0.6)
        for point, lr, bound, accuracy in (("i", 1e-3, 2.5, 0.9), ("i_lr_3e-3", 3e-3, 2.1, 0.5), ("h", 1e-3, 2.0, 0.4)):
            study.own(study.point("table1_attention", point, seed, lr=lr, val_nelbo=bound), accuracy)
    by_rank = {e.id: e for e in MODULES["table1_attention"].lora_is_behind_full(study.results, PAPER)}
    assert by_rank["g-i"].value == pytest.approx(10) and "its best learning rate of 0.003" in by_rank["g-i"].what
    assert by_rank["g-h"].value == pytest.approx(20) and "learning rate" not in by_rank["g-h"].what


def test_drift_is_in_percent_of_what_ar_training_changes():
    study = Study()
    for seed in range(3):
        for point, change in (("c", 0.30), ("g", 0.20), ("b", 0.28), ("f", 0.18)):
            study.drift(study.point("table1_attention", point, seed), change)
        # Seeds of one budget in examples differ by some tokens; the change of all of them counts.
        study.drift(study.point("recipes", "ar_control", seed, tokens=1000 + 10 * seed), (0.05, 0.1, 0.15)[seed])
        study.drift(study.point("shift_by_budget", "ar_control", seed, tokens=4000), 0.9)
        for point, change in (("c", 0.15), ("g", 0.10), ("b", 0.15), ("f", 0.10)):
            study.drift(study.point("figure2e_adamw", point, seed), change)
    both, *_, adamw = MODULES["figure2e_drift"].block_drifts_less(study.results, PAPER)
    assert both.value == pytest.approx(100) and both.what.endswith("in % of what AR training changes")
    # The control has the study's optimizer, so that what AdamW changes is in percent of itself.
    assert adamw.value == pytest.approx(50) and adamw.what.endswith("in % of the change itself")


def test_the_learning_rates_of_adamw_are_compared_beside_those_of_the_study():
    effects = MODULES["table7_lr"].lr_sweet_spot(whole_study().results, PAPER)
    found = {effect.id: effect.value for effect in effects}
    assert len(found) == 6
    for id in ("bend", "small", "large"):  # half of the accuracy was planted, to the nearest item
        assert found[f"adamw {id}"] == pytest.approx(found[id] / 2, abs=2)


def test_only_seeds_that_both_sides_have_are_compared():
    study = Study()
    for point, seeds in (("f", (0, 1)), ("g", (1, 2))):
        for seed in seeds:
            study.own(study.point("table1_attention", point, seed), 0.5)
    effect = MODULES["table1_attention"].no_token_shift_helps(study.results, PAPER)[0]
    assert effect.seeds == 1 and effect.runs == ("table1_attention/g/1", "table1_attention/f/1")


def test_runs_that_answered_different_items_are_not_compared():
    study = Study()
    for point, items in (("f", 90), ("g", 45)):
        study.own(study.point("table1_attention", point), 0.5, outcomes=correct(0.5, items))
    with pytest.raises(ValueError, match=r"different items .45 and 90.: evaluate them alike"):
        MODULES["table1_attention"].no_token_shift_helps(study.results, PAPER)


def test_blocks_that_hold_most_answers_whole_are_not_compared():
    study = Study()
    for seed in range(3):
        for block in (4, 8, 16, 32):
            study.own(study.point("figure3_block_size", f"block_size={block}", seed, block_size=block), 0.5, answer=7.0)
    bend = MODULES["figure3_block_size"].block_size_sweet_spot(study.results, PAPER)[0]
    assert (
        bend.verdict == CANNOT_DECIDE
        and "short enough for answers of 7.0 tokens (1.5 blocks each or more) were trained" in bend.reason
    )


def test_training_blocks_are_compared_at_equal_forwards_where_each_was_decoded_so():
    """At one token per step all are alike; at a quarter of the forwards blocks of 8 are best."""
    study, sweep = Study(), "figure3_block_size"
    for seed in range(3):
        for block, accuracy in ((4, 0.4), (8, 0.7), (16, 0.5)):
            run = study.point(sweep, f"block_size={block}", seed, block_size=block)
            study.own(run, 0.9)
            for threshold, nfe, right in ((1.0, 28.0, 0.9), (0.5, 7.0, accuracy)):
                at = {"eval_block_size": block, "threshold": threshold, "nfe": nfe}
                study.evaluation(run, correct(right), sweep, "forwards", **at)
    effects = {e.id: e for e in MODULES[sweep].block_size_sweet_spot(study.results, PAPER)}
    assert effects["bend"].value == pytest.approx(0)
    assert effects["bend at 0.25"].value == pytest.approx(25) and effects["bend at 0.25"].verdict == "agrees"


def test_a_noisy_suite_of_texts_cannot_decide_on_embeddings():
    """Ten points of a score whose interval over texts is twenty wide, of dLM and parent each."""
    study = Study()
    for seed in range(3):
        run = study.point("table4_embedding", "base", seed)
        ids = {"run": run, "for_sweep": "table4_embedding", "evaluation": "embedding", "task": "similarity"}
        for model, score in (("parent", 0.5), (DLM, 0.55)):
            study.add("scores", **ids, model=model, **columns("score", score, score - 0.1, score + 0.1, 50))
    effect = MODULES["table4_embedding"].dlm_embeds_better(study.results, PAPER)[0]
    error = 20 / 2 / 1.96 * np.sqrt(2)
    assert effect.value == pytest.approx(5) and effect.high - 5 == pytest.approx(1.96 * error, rel=1e-3)
    assert replace(effect, margin=3.0).verdict == CANNOT_DECIDE


def masked_at(study, target, tpf):
    for seed in range(3):
        for name, accuracy in (("uniform", 0.5), ("half_life_0.1", 0.6), ("right_to_left", 0.3)):
            run = study.point("table2_masking", name, seed)
            at = {"threshold": 0.1, "tpf": tpf[name], "target": target, "setting": f"tpf {target}"}
            study.evaluation(run, correct(accuracy), "table2_masking", "tpf", **at)


def test_a_target_of_tokens_per_forward_that_one_scheme_misses_is_not_compared():
    study, near = Study(), {"uniform": 3.9, "half_life_0.1": 4.1, "right_to_left": 3.6}
    masked_at(study, 4.0, near)
    masked_at(study, 5.6, near | {"half_life_0.1": 5.5})
    rows = parallel(study.results.of("evaluations", "table2_masking"))
    assert set(rows["setting"]) == {"TPF ≈ 4", "TPF 5.6: not reached"}
    effects = {e.id: e for e in MODULES["table2_masking"].positional_masking_helps(study.results, PAPER)}
    assert effects["half_life_0.1 at 4"].verdict == "agrees"
    missed = effects["half_life_0.1 at 5.6"]
    assert missed.verdict == CANNOT_DECIDE and "comes to 3.90 to 5.50 tokens per forward, not to 5.6" in missed.reason


def test_a_target_above_the_ceiling_of_the_answers_cannot_be_decided():
    study = Study()
    masked_at(study, 4.0, dict.fromkeys(("uniform", "half_life_0.1", "right_to_left"), 3.9))
    run = study.point("table2_masking", "other")
    study.own(run, 0.5, answer=6.8)
    effects = {e.id: e for e in MODULES["table2_masking"].positional_masking_helps(study.results, PAPER)}
    assert "allow at most 3.94, one forward per block" in effects["half_life_0.1 at 4"].reason


def test_every_setting_is_held_against_the_papers_own(results):
    effects = {e.id: e.in_paper for e in MODULES["table2_masking"].positional_masking_helps(results, PAPER)}
    assert effects["half_life_0.1 at 1"] == "+1.75" and effects["half_life_0.1 at 5.6"] == "+4.38"
    assert effects["uniform at 1"] == "+22.06" and effects["uniform at 5.6"] == "+19.86" and len(effects) == 8


def test_the_papers_curvature_is_that_of_its_own_grid(results):
    """Read off it by hand: blocks 4 to 128 have 25.1, 35.4, 38.4, 35.3, 34.9 and 32.0 at 1.5B."""
    effects = {e.id: e for e in MODULES["figure3_block_size"].block_size_sweet_spot(results, PAPER)}
    weights = np.array([-5, 1, 4, 4, 1, -5]) / 10
    bent = weights @ [25.1, 35.4, 38.4, 35.3, 34.9, 32.0]
    assert effects["bend"].paper == pytest.approx(bent) and effects["bend"].in_paper.startswith(f"{bent:+.1f} (4B: +")
    assert effects["small"].paper == pytest.approx(36.0 - 25.1) and effects["bend"].paper_parent == 41.79


def test_the_papers_table_1_average_is_that_of_its_six_tasks():
    for row in PAPER["table1_attention"]["rows"]:
        assert np.mean(row[6:12]) == pytest.approx(row[12], abs=0.02), row


def test_the_papers_ladder_ends_where_its_other_tables_say():
    """Its positional masking is Table 2's at one token per forward, and so is its uniform."""
    ladder = {row[0]: row[-1] for row in PAPER["table5_ladder"]["rows"]}
    assert ladder["+ position-dependent masking"] == PAPER["table2_masking"]["half_life_0.10"][0]
    assert ladder["+ remove token shift"] == PAPER["table2_masking"]["uniform"][0]
    assert yaml.safe_load((ROOT / "analysis" / "paper.yaml").read_text()) == PAPER
