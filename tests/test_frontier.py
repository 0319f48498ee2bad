"""The artefacts of the recipes: who is ahead, at what cost, and that nothing is said which the tables do not say."""

import json

import numpy as np
import pandas as pd
import pytest
from study_tables import ITEMS, RECIPES, Study, correct, recipes, whole_study

from analysis.artefacts import contested_factorial, frontier
from analysis.artefacts import recipes as recipes_artefact
from analysis.artefacts.contested_factorial import crossings
from analysis.artefacts.frontier import decodings, pareto_points
from analysis.evidence.compare import final_evaluation
from analysis.evidence.frontier import optimal
from analysis.pages.exhibits import Plot, Table
from analysis.tables.results import LATER, Results

pytestmark = pytest.mark.trains


def of_recipes(seeds=(0, 1, 2), **kwargs) -> Study:
    study = Study()
    for seed in seeds:
        recipes(study, seed, **kwargs)
    return study


def tables(results, module):
    return [e for e in module.exhibits(results, {}) if isinstance(e, Table)]


def found(results, module) -> list[str]:
    """The sentences of an artefact."""
    return list(tables(results, module)[0].frame["found"])


@pytest.fixture(scope="module")
def results():
    return of_recipes().results


def test_every_recipe_is_a_row_beside_its_parent_controls_and_second_stages_marked(results):
    table = tables(results, recipes_artefact)[1].frame.set_index("label")
    kinds = {"AR parent": "", "Efficient Dlm": "recipe", "Dream": "recipe", "Ar Control": "control"}
    assert dict(table["kind"]) == kinds | {"Untrained": "control", "D2F after Dream": "second stage"}
    assert table["accuracy %"]["Dream"].mean == pytest.approx(60) and table["accuracy %"]["Dream"].n == ITEMS
    assert table["tokens/row"]["Dream"].mean == pytest.approx(0.3) and table["accuracy %"]["Dream"].seeds == 3


def test_a_second_stage_costs_what_its_first_did_as_well(results):
    costs = tables(results, recipes_artefact)[1].frame.set_index("label")
    assert costs["tokens"]["D2F after Dream"].mean == 2000 and costs["tokens"]["Dream"].mean == 1000
    assert costs["TFLOP"]["D2F after Dream"].mean == pytest.approx(1 + 1)


def test_a_second_stage_whose_first_was_not_collected_has_no_total():
    study = of_recipes((0,), chosen=("efficient_dlm",))
    run = study.point("recipes_second_stage", "d2f", label="D2F", continues="elsewhere")
    study.own(run, 0.7)
    costs = tables(study.results, recipes_artefact)[1].frame.set_index("label")
    assert costs["tokens"]["D2F"] is None and costs["tokens"]["Efficient Dlm"].mean == 1000


def test_accuracy_is_shown_at_every_threshold_with_its_forwards(results):
    table = tables(results, recipes_artefact)[2].frame.set_index("label")
    dream = table.loc["Dream"]
    assert list(table.columns) == ["kind", "accuracy %, τ 0.5", "TPF, τ 0.5", "NFE, τ 0.5"]
    assert dream["accuracy %, τ 0.5"].mean == pytest.approx(50) and dream["NFE, τ 0.5"].mean == 4


def test_sentences_of_recipes_say_the_best_its_lead_and_whether_that_is_decided(results):
    one, parent, control, random, cheap, fast, flops, prose = found(results, recipes_artefact)
    assert one.startswith("At equal tokens, one token per step: Efficient Dlm is the most accurate of 2, 80.0 % at NFE")
    assert "+20.0 points (" in one and one.endswith("against Dream: decided.")
    assert "−15.6 points" in parent and "against AR parent: decided" in parent
    assert "−10.0 points" in control and "against Ar Control" in control and "+70.0 points" in random
    assert cheap == "No recipe that cost fewer FLOPs than Efficient Dlm comes near enough to be undecided against it."
    assert "τ 0.5" in fast and "50.0 % at NFE 4.0; +0.0 points (+0.0 to +0.0) against Dream: undecided." in fast
    # At 1 TFLOP Efficient-DLM has seen half of its tokens: 2.5; Dream ends there: 2.1 + 0.01 a seed.
    assert "(1 TFLOP): Dream has the lowest bound on answers of 2, 2.110 bits/byte" in flops
    assert "Efficient Dlm has +0.390 bits/byte (+0.365 to +0.415) more: decided." in flops
    assert "Dream has the lowest bound on prose" in prose


def test_a_cheaper_recipe_that_is_not_told_apart_is_named():
    study = Study()
    for seed in range(3):
        for name, accuracy, flops in (("dear", 0.8, 4e12), ("cheap", 0.79, 1e12)):
            run = study.point("recipes", name, seed, label=name, train_flops=flops)
            outcomes = np.random.default_rng(seed + int(flops / 1e12)).random(ITEMS) < accuracy
            study.own(run, accuracy, outcomes=correct(0.8) if name == "dear" else outcomes)
    *_, sentence, unknown = found(study.results, recipes_artefact)
    assert unknown == "At equal FLOPs: validation answers and prose were not measured in these runs."
    assert sentence.startswith("With 25 % of its FLOPs, cheap has ") and sentence.endswith("against it: undecided.")


def test_the_lowest_bound_says_of_how_many_others_it_is_told_apart():
    values = {"best": (2.0, 2.1, 1.9), "near": (2.3, 1.9, 2.1), "far": (3.0, 3.1, 2.9)}
    rows = [
        {"point": point, "seed": seed, "run": f"{point}{seed}", "flops": 1e12, "value": value}
        for point, found in values.items()
        for seed, value in enumerate(found)
    ]
    said = recipes_artefact.best_at_equal_flops(pd.DataFrame(rows).set_index(["point", "seed"]), "answers")
    assert said.endswith("undecided. It differs significantly from 1 of the other 2.")


def test_one_seed_is_decided_over_its_items_only():
    one, *_, flops = found(of_recipes((0,)).results, recipes_artefact)
    assert one.endswith("against Dream: decided, over the items of 1 seed.") and " more: undecided." in flops


@pytest.mark.parametrize("module", [recipes_artefact, frontier])
def test_runs_that_are_missing_are_named(module):
    study = of_recipes((0,))
    study.point("recipes", "tidar", label="TiDAR", state="failed")
    study.point("recipes", "dream", 1, label="Dream", state="not trained")
    made = [e.caption for e in tables(study.results, module)]
    assert any("From 5 of 7 runs. Without a finished run of every seed: TiDAR, Dream." in c for c in made)


def test_one_recipe_alone_is_said_to_be_alone():
    sentences = found(of_recipes((0,), chosen=("efficient_dlm",)).results, recipes_artefact)
    assert sentences[0].endswith("80.0 % at NFE 7.0; alone.")


def test_a_point_is_optimal_unless_another_is_better_in_one_and_no_worse_in_the_other():
    cost, value = np.array([1.0, 2, 2, 3, np.nan]), np.array([0.5, 0.9, 0.8, 0.9, 1.0])
    assert list(optimal(cost, value)) == [True, True, False, False, False]
    random = np.random.default_rng(0).integers(5, size=(2, 40)).astype(float)
    for i, made in enumerate(optimal(*random)):
        others = [(c <= random[0, i], v >= random[1, i], (c, v) != tuple(random[:, i])) for c, v in random.T]
        assert made == (not any(all(o) for o in others))


def test_optimal_points_and_baselines_are_marked_and_the_parent_is_there_once(results):
    rows = decodings(results)
    points = pareto_points(rows[rows["decoding"] != "oracle"]).set_index(["label", "decoding", "NFE"], drop=False)
    parent = points[points["label"] == "AR parent"]
    assert len(parent) == 2 and all(e.seeds == 1 for e in parent["accuracy %"]) and parent["baseline"].all()
    assert set(points.loc[points["baseline"], "label"]) == {"AR parent", "Ar Control"}
    optimal_ones = {(r.label, r.setting): r.optimal for r in points.itertuples() if r.optimal}
    # Lookup has the highest accuracy; nothing is cheaper than the three at 4 forwards, of which all have 50 %.
    ties = {(name, "threshold 0.5"): "NFE, speed" for name in ("Efficient Dlm", "Dream", "D2F after Dream")}
    assert optimal_ones == ties | {("AR parent", "parent_lookup"): "NFE, speed"}


def test_an_ar_model_is_not_decoded_by_threshold(results):
    rows = decodings(results)
    assert set(rows.loc[rows["label"] == "Ar Control", "decoding"]) == {"ar", "lookup", "oracle"}


def test_the_oracle_is_drawn_apart_and_no_sentence_knows_it(results):
    drawn = {e.name: e for e in frontier.exhibits(results, {}) if isinstance(e, Plot)}
    assert len(drawn["frontier"].panels) == 2 and len(drawn["frontier_oracle"].panels) == 1
    text = " ".join(found(results, frontier))
    assert "oracle" not in text and "With a quarter of AR's forwards (NFE ≤ 2.0): no recipe." in text


def test_the_figure_names_baselines_and_what_is_optimal_and_leaves_the_others_grey(results):
    plot = next(e for e in frontier.exhibits(results, {}) if isinstance(e, Plot))
    labels = plot.panels[0].axes[0].get_legend_handles_labels()[1]
    named = {"Efficient Dlm, threshold", "Dream, threshold", "D2F after Dream, threshold"}
    assert set(labels) == named | {"AR parent, ar", "AR parent, lookup", "Ar Control, ar", "Ar Control, lookup"}


def test_sentences_of_the_frontier_compare_within_budgets_with_the_baselines(results):
    at_ar, half, _, *speeds = found(results, frontier)
    assert at_ar.startswith("With no more forwards than AR (NFE ≤ 8.0): Efficient Dlm (threshold 1.0) is the most ")
    assert "+10.0 points" in at_ar and "against D2F after Dream (threshold 1.0): decided" in at_ar
    assert "against AR parent with lookup at NFE 6.0: decided." in at_ar
    assert "(NFE ≤ 4.0)" in half and "50.0 % at NFE 4.0" in half and "undecided" in half and len(speeds) == 2


def test_without_the_parent_there_is_no_budget_and_that_is_said():
    results = of_recipes((0,), without=("parent", "parent_lookup")).results
    (sentence,) = found(results, frontier)
    assert sentence.startswith("The AR parent was not measured")
    assert not any("AR parent" in s for s in found(results, recipes_artefact))


def test_results_from_before_there_were_rows_and_shares_can_still_be_shown(tmp_path):
    path = tmp_path / "results.json"
    whole_study((0,)).results.save(path)
    content = json.loads(path.read_text())
    for table, later in LATER.items():
        content[table] = {k: v for k, v in content[table].items() if k not in later}
    path.write_text(json.dumps(content))
    old = Results.load(path)
    assert old.evaluations["tokens_per_row"].isna().all() and old.runs["continues"].isna().all()
    table = tables(old, recipes_artefact)[1].frame
    assert set(table["tokens/row"]) == {None} and len(table) == 2 + len(RECIPES)


def contested_rows(results):
    rows = final_evaluation(results.of("evaluations", contested_factorial.SWEEP))
    auxiliary = rows["auxiliary_name"]
    return rows.assign(auxiliary_name=auxiliary.where(auxiliary.notna(), "none"))


def test_each_crossing_gives_its_planted_effects():
    """The shift costs 10 points, and pays 20 with the AR loss alone: their interaction is half of 30."""
    found = crossings(contested_rows(whole_study().results))
    made = {name: {e.what: e.value for e in effects} for name, effects in found.items()}
    context, causality, loss = made.values()
    assert list(made) == list(contested_factorial.CROSSINGS)
    assert context["attention (block_noisy)"] == pytest.approx(-10) and abs(context["attention × token shift"]) < 1e-6
    assert causality["attention (block_token_causal)"] == pytest.approx(0, abs=1e-6)
    assert causality["token shift (True)"] == pytest.approx(-10) and loss["token shift (True)"] == pytest.approx(5)
    assert loss["auxiliary (ar)"] == pytest.approx(15) and loss["auxiliary × token shift"] == pytest.approx(15)


def test_a_crossing_whose_choice_was_run_one_way_is_not_shown():
    rows = contested_rows(whole_study().results)
    assert list(crossings(rows[rows["auxiliary_name"] == "none"])) == list(contested_factorial.CROSSINGS)[:2]
    assert crossings(rows[rows["attention_name"] == "block"]) == {}
