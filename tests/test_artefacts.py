"""Every table and figure from hand-made results: known answers, marks and labels, and what is not there."""

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, everyday
from study_tables import ITEMS, Study, correct, whole_study

from analysis.artefacts import artefacts
from analysis.artefacts.figure12_position_loss import periodic_share
from analysis.artefacts.shift_by_budget import block_losses, gain_by_position
from analysis.artefacts.table2_masking import parallel
from analysis.evidence.compare import by_point
from analysis.evidence.effect import CANNOT_DECIDE, EXPECTATIONS, NO_DIFFERENCE, NO_RUNS, UNDECIDED, Effect
from analysis.pages.claims import count_text, evaluate_claims, paper_numbers, with_primary
from analysis.pages.exhibits import Plot, Table
from analysis.pages.plots import lines
from analysis.pages.sections import is_empty
from analysis.tables.results import DLM, Results, columns

PAPER, MODULES = paper_numbers(), artefacts()
CLAIMS = {claim["id"]: claim["from"] for claim in PAPER["claims"]}


@pytest.fixture(scope="module")
def results():
    return whole_study().results


@pytest.fixture(scope="module")
def of_one_seed():
    return whole_study((0,)).results


@pytest.fixture(scope="module")
def exhibits(results):
    """What an artefact shows of them: made once, however many tests look at it."""
    return cache(lambda name: shown(results, name))


def shown(results, name):
    return MODULES[name].exhibits(results, PAPER)


def tables(results, name):
    return [e.frame for e in shown(results, name) if isinstance(e, Table)]


def plots(results, name):
    return {e.name: e for e in shown(results, name) if isinstance(e, Plot)}


def without_measurements(results):
    """The same points and runs, of which nothing was measured."""
    rows = {name: getattr(results, name).to_dict("records") for name in ("points", "runs")}
    return Results.of_rows(rows)


def test_every_artefact_reads_sweeps_that_exist_and_has_its_own_place():
    known = {path.stem for path in (ROOT / "sweeps").glob("*.yaml")}
    assert len({module.PLACE for module in MODULES.values()}) == len(MODULES) > 18
    for name, module in MODULES.items():
        assert set(module.SWEEPS) <= known, name
        assert module.TITLE and module.TOPIC and module.__doc__, name
    assert known - {"parents"} <= {sweep for module in MODULES.values() for sweep in module.SWEEPS}


def test_every_setting_of_the_paper_is_of_an_artefact():
    assert set(PAPER["settings"]) <= set(MODULES)
    assert {name for name, m in MODULES.items() if not m.TITLE.startswith("Beyond")} == set(PAPER["settings"])


def test_the_papers_claims_are_all_there_each_with_the_function_that_decides_it():
    assert len(CLAIMS) == 14
    for claim, name in CLAIMS.items():
        assert callable(getattr(MODULES[name], claim, None)), claim


@pytest.mark.parametrize("name", MODULES)
def test_an_artefact_with_all_its_runs_shows_all_it_has(name, exhibits):
    made = exhibits(name)
    assert made and not any(is_empty(e) for e in made)
    assert all(e.caption.rstrip().endswith(".") for e in made)


@pytest.mark.parametrize("name", MODULES)
def test_an_artefact_whose_runs_were_not_measured_shows_nothing_of_its_own(name, results):
    """What the paper prints, and what others published, stays."""
    for made in shown(without_measurements(results), name):
        papers = "aper's" in made.caption or name in ("table1_attention", "external")
        assert is_empty(made) or papers


@pytest.mark.parametrize("name", everyday(MODULES, 9))
def test_an_artefact_takes_one_seed(name, of_one_seed):
    assert all(not is_empty(e) for e in shown(of_one_seed, name))


@pytest.mark.parametrize("name", everyday(sorted({n for n in MODULES if n != "figure7_masking"}), 9))
def test_accuracy_is_never_shown_without_forwards(name, exhibits):
    for table in (exhibit for exhibit in exhibits(name) if isinstance(exhibit, Table)):
        columns = set(table.frame.columns)
        if "accuracy %" in columns and "bits/byte" not in columns:
            assert {"NFE", "TPF"} <= columns


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
    both = MODULES["figure2e_drift"].block_drifts_less(study.results, PAPER)[0]
    assert both.value == pytest.approx(100) and both.what.endswith("in % of what AR training changes")


def test_a_table_has_no_column_of_tasks_that_were_not_asked():
    rows = pd.DataFrame(
        {"point": ["a"], "label": ["A"], "seed": [0], "accuracy": [0.5], "code": [None], "parallel": 0.25}
    )
    measures = {"accuracy": "accuracy %", "code": "code %", "parallel": "parallel %", "right_steps": "steps %"}
    assert list(by_point(rows, measures)) == ["point", "label", "accuracy %", "parallel %"]


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


def test_table_1_has_the_papers_rows_in_order_with_ours_beside_them():
    study = Study()
    for seed in (0, 1):
        study.own(study.point("table1_attention", "g", seed, label="clean"), 0.6 + 0.2 * seed, parent=0.9)
    study.point("table1_attention", "d", state="failed")
    table = tables(study.results, "table1_attention")[0].set_index("row")
    assert "".join(table.index) == "abcdefghi"
    g, a, d = table.loc["g"], table.loc["a"], table.loc["d"]
    assert g["accuracy %"].mean == pytest.approx(70) and (g["accuracy %"].seeds, g["accuracy %"].n) == (2, ITEMS)
    assert (
        a["accuracy %"].mean == pytest.approx(90)
        and g["kept %"] == pytest.approx(100 * 70 / 90, abs=0.5)
        and a["kept %"] == 100
    )
    assert g["paper %"] == 38.41 and round(g["paper kept %"]) == 92 and g["paper maths %"] == pytest.approx(37.275)
    assert d["accuracy %"] is None and d["paper %"] == 28.23 and d["conversion"] == "d"
    assert [row for row in table.index if not table.loc[row, "KV cache"]] == ["b", "c"]


def test_lora_at_several_rates_says_which_is_shown_and_which_the_claim_takes():
    for rates, noted in ((("h",), False), (("h", "h_low", "h_high"), True)):
        study = Study()
        for i, point in enumerate(rates):
            study.own(study.point("table1_attention", point, lr=1e-3 * (i + 1)), 0.5)
        table = next(e for e in shown(study.results, "table1_attention") if isinstance(e, Table))
        assert ("rows h and i show the middle one" in table.caption) == noted


@pytest.mark.parametrize(("canvas", "noted"), [("block", True), ("whole", False), (None, False)])
def test_recipes_with_another_canvas_than_table_1_say_so(canvas, noted):
    study = Study()
    study.own(study.point("table1_attention", "b", canvas=canvas), 0.5)
    study.own(study.point("recipes", "dream"), 0.5)
    said = plots(study.results, "recipes")["recipes"].caption
    assert ("unlike rows b and c of Table 1, whose canvas ends with the block" in said) == noted


def test_bounds_over_each_runs_own_tokens_are_not_compared():
    """Old runs: their validation is of rows that every pattern filled in its own way."""
    study, measures = Study(), ("examples", "answer_tokens", "val_bits_answers", "val_bits_prose")
    for point in "bg":
        run = study.point("table1_attention", point, **dict.fromkeys(measures))
        study.own(run, 0.5)
        study.curve(run, {500: 2.0, 1000: 1.0}, ("val/nelbo",))
    costs = shown(study.results, "table1_attention")[-1]
    assert list(costs.frame) == ["point", "tokens", "TFLOP", "minutes"]
    assert costs.caption == (
        "Training cost. Not measured in these runs: examples; answer tokens; bits/byte of answers; bits/byte of prose; "
        "answers at equal FLOPs; prose at equal FLOPs."
    )
    assert is_empty(plots(study.results, "table1_attention")["table1_attention"])


def test_bounds_on_the_same_tokens_are_compared_at_equal_examples_and_flops():
    study = Study()
    for point in "bg":
        run = study.point("table1_attention", point)
        study.own(run, 0.5)
        study.curve(run, {500: 2.0, 1000: 1.5})
    costs = shown(study.results, "table1_attention")[-1]
    assert "same tokens for every run" in costs.caption and "not measured" not in costs.caption
    assert [e.mean for e in costs.frame["answers at equal FLOPs"]] == [1.5, 1.5]
    examples, flops, prose = (f.axes[0] for f in plots(study.results, "table1_attention")["table1_attention"].panels)
    assert [list(axes.lines[0].get_xdata()) for axes in (examples, flops, prose)] == [
        [50, 100],
        [5e11, 1e12],
        [5e11, 1e12],
    ]


@pytest.mark.parametrize(("value", "text"), [(8, "8"), (250_880, "251k"), (1_000_448, "1M"), (2_000_896, "2M")])
def test_ticks_of_a_logarithmic_axis_are_short(value, text):
    figure = lines(pd.DataFrame({"x": [value], "y": [0.5], "line": "a"}), "x", "y", "line", "", "x", "y", log=True)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [text]


@pytest.mark.parametrize(
    ("name", "plot", "lines"),
    [
        ("table1_attention", "table1_attention", [8, 8, 8]),
        ("figure2e_drift", "figure2e_drift", [5, 5]),
        ("figure4_drift_by_block_size", "figure4_drift_by_block_size", [3, 3]),
        ("figure5_decoding_block_size", "figure5_decoding_block_size", [3]),
        ("figure6_trace", "figure6a_steps", [1]),
        ("figure6_trace", "figure6c_loss", [2]),
        ("figure7_masking", "figure7_masking", [6]),
        ("figure8_tokens", "figure8_tokens", [1, 1, 3]),
        ("table3_family", "figure9_frontier", [3, 3]),
        ("figure10_approximate_cache", "figure10_approximate_cache", [3, 3]),
        ("figure11_batch", "figure11_batch", [4]),
        ("figure12_position_loss", "figure12_position_loss", [2]),
        ("table7_lr", "table7_lr", [1, 1]),
        ("table2_masking", "table2_masking", [5, 5]),
        ("block_by_size", "block_by_size", [2, 2]),
        ("shift_by_budget", "shift_by_budget", [2]),
        ("shift_by_budget", "shift_by_position", [1, 2]),
    ],
)
def test_a_figure_has_one_labelled_line_for_each_of_what_it_compares(name, plot, lines, exhibits):
    (panels,) = (e.panels for e in exhibits(name) if isinstance(e, Plot) and e.name == plot)
    assert [len(figure.axes[0].lines) for figure in panels] == lines
    for figure in panels:
        axes, labels = figure.axes[0], figure.axes[0].get_legend_handles_labels()[1]
        assert len(set(labels)) == len(labels) and axes.get_xlabel() and axes.get_ylabel()
        assert [text.get_text() for text in figure.legends[0].get_texts()] == labels


def test_the_family_has_each_parent_once_and_the_likelihood_of_its_own_evaluation(results):
    table = tables(results, "table3_family")[0]
    assert list(table["type"]) == ["AR"] * 3 + ["dLM"] * 6 and list(table["threshold"])[:3] == [1] * 3
    assert {round(cell.mean, 9) for cell in table["cloze %"]} == {70} and table["accuracy %"].iloc[3].seeds == 3


def test_the_speed_up_is_against_the_parent_at_the_same_batch_size():
    study = Study()
    run = study.point("table3_family", "parent=middle")
    for batch, rate in ((1, 100.0), (8, 400.0)):
        at = {"sweep": "table3_family", "threshold": 1.0, "batch_size": batch}
        study.evaluation(run, correct(0.9), name="ar", model="parent", tokens_per_second=rate, **at)
        study.evaluation(run, correct(0.6), name="dlm", tokens_per_second=200.0, **at)
    speed = tables(study.results, "figure11_batch")[1]
    assert speed.values.tolist() == [[1, 2.0], [8, 0.5]] and list(speed.columns) == ["batch", "threshold 1"]


def test_the_points_of_a_line_are_means_over_seeds(results):
    line = plots(results, "figure6_trace")["figure6a_steps"].panels[0].axes[0].lines[0]
    assert list(line.get_xdata()) == list(range(8)) and list(line.get_ydata()) == pytest.approx(np.arange(8) + 0.01)


def test_the_heat_map_writes_every_cell_in_percent_of_the_parent_on_the_axes_of_the_papers():
    study = Study()
    for block in (4, 8):
        run = study.point("figure3_block_size", f"block_size={block}", block_size=block)
        study.own(run, 0.5, parent=0.8)
        for size in (4, 8)[: block // 4]:
            at = {"eval_block_size": size, "threshold": 1.0}
            study.evaluation(run, correct(block / 10), "figure3_block_size", "decoding_block_size", **at)
    here, small, large = (f.axes[0] for f in plots(study.results, "figure3_block_size")["figure3_block_size"].panels)
    assert [text.get_text() for text in here.texts] == ["50", "100", "100"]  # (8, 4) and (8, 8) last; (4, 8) is missing
    assert len({tuple(t.get_text() for t in axes.get_yticklabels()) for axes in (here, small, large)}) == 1
    paper = PAPER["figure3_block_size"]["qwen2_5_1_5b_50b_tokens"][16][2] / PAPER["parents"]["qwen2_5_1_5b"]
    assert f"{100 * paper:.0f}" in [text.get_text() for text in small.texts]


def test_the_example_marks_every_committed_token_at_its_step_and_shows_white_space(results):
    axes = plots(results, "figure6_trace")["figure6b_example"].panels[0].axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[0, 0], [1, 1]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["<b>&↵", ">&↵"]


def test_the_shift_crosses_in_accuracy_and_in_the_bound_at_budgets_of_their_own(results):
    table = tables(results, "shift_by_budget")[0].set_index("tokens")
    assert list(table.index) == ["1,000", "4,000", "8,000"]
    assert list(table["bits/byte saved"]) == ["+0.200 (+0.200 to +0.200)"] * 2 + ["−0.100 (−0.100 to −0.100)"]
    assert [cell.partition(" (")[0] for cell in table["points"]] == ["+30.0", "−10.0", "−20.0"]
    assert set(table["accuracy crosses at"]) == {"near 0.0028M", ""}  # 1000 · 4^(30 / 40)
    assert set(table["bits/byte crosses at"]) == {"near 0.0063M", ""}  # 4000 · 2^(0.2 / 0.3)


def test_with_and_without_the_shift_have_the_same_colours_in_every_panel(results):
    made = plots(results, "shift_by_budget")
    panels = [figure for plot in made.values() for figure in plot.panels]
    colours = [{line.get_label(): line.get_color() for line in figure.axes[0].lines} for figure in panels]
    assert len(set().union(*(set(found.items()) for found in colours))) == 2


def test_whole_numbers_stay_whole_beside_others():
    assert [c.text for c in Table(pd.DataFrame({"batch": [8], "faster": [1.5]}), "", 2).cells[0]] == ["8", "1.50"]


def test_what_the_shift_gains_is_told_by_position_where_both_were_measured(results):
    table = tables(results, "shift_by_budget")[1]  # at 1,000 tokens only one of the two was
    assert list(table) == ["position", "nats at 8,000 tokens"]
    assert list(table["position"]) == ["0", "1", "2", "3", "mean"]
    gains = table["nats at 8,000 tokens"]
    assert [gain.mean for gain in gains] == pytest.approx([0.6, -0.1, -0.1, -0.1, 0.075])
    assert {gain.seeds for gain in gains} == {3} and gains[0].low == pytest.approx(0.6)
    assert gain_by_position(block_losses(Study().results)).empty


def test_blocks_of_decoding_are_told_apart_by_what_training_has_seen(results):
    """At 3.5 forwards of 28 tokens 36, 40 and 45 of 90 are right with blocks of 4, 8 and 16, at 28 forwards 54."""
    table = tables(results, "figure5_decoding_block_size")[0].set_index(["blocks", "forwards per token"])[
        "per doubling"
    ]
    assert {key: cell.partition(" ")[0] for key, cell in table.items()} == {
        ("up to that of training", "0.25"): "+3.8",  # 6/7 of the way from 28 forwards to 3.5
        ("up to that of training", "0.5"): "+2.5",
        ("up to that of training", "1"): "+0.0",
        ("from it on", "0.25"): "+4.8",
        ("from it on", "0.5"): "+3.2",
        ("from it on", "1"): "+0.0",
    }


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


def test_the_decoding_block_is_tested_on_the_models_of_table_1():
    study = Study()
    study.point("table1_attention", "g", block_size=8)
    for block in (4, 8):
        run = study.point("figure3_block_size", f"block_size={block}", block_size=block)
        for size in (4, 8, 16)[: 5 - block // 4]:
            study.evaluation(run, correct(0.5), "figure3_block_size", "forwards", eval_block_size=size, threshold=1.0)
    rows = MODULES["figure5_decoding_block_size"].by_block(study.results)
    assert set(rows["block_size"]) == {8}


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


def test_a_score_and_its_interval_have_one_scale():
    study = Study()
    run = study.point("table4_embedding", "base")
    ids = {"run": run, "for_sweep": "table4_embedding", "evaluation": "embed", "task": "similarity", "model": DLM}
    study.add("scores", **ids, **columns("score", 0.7, 0.6, 0.8, 50))
    estimate = tables(study.results, "table4_embedding")[0].iloc[0, 1]
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((70, 60, 80))


def positions(values, block=8):
    return pd.DataFrame({"position": range(len(values)), "value": values, "block_size": block})


def test_a_loss_that_repeats_with_the_block_is_periodic_and_noise_is_not():
    saw = np.tile(np.arange(8.0), 8)
    noise = np.random.default_rng(0).standard_normal((50, 64))
    assert periodic_share(positions(saw)) == 1 and periodic_share(positions(np.ones(64))) == 0
    assert np.mean([periodic_share(positions(x)) for x in noise]) < 0.1
    assert 0.5 < periodic_share(positions(saw + noise[0])) < 1


def test_rows_of_one_seed_that_nothing_tells_apart_are_refused():
    rows = pd.DataFrame({"point": ["a", "a"], "seed": [0, 0], "accuracy": [0.5, 0.6]})
    with pytest.raises(ValueError, match=r"'point': 'a'.* several rows of one seed"):
        by_point(rows, {"accuracy": "accuracy %"}, ("point",))


def test_the_papers_table_1_average_is_that_of_its_six_tasks():
    for row in PAPER["table1_attention"]["rows"]:
        assert np.mean(row[6:12]) == pytest.approx(row[12], abs=0.02), row


def test_the_papers_ladder_ends_where_its_other_tables_say():
    """Its positional masking is Table 2's at one token per forward, and so is its uniform."""
    ladder = {row[0]: row[-1] for row in PAPER["table5_ladder"]["rows"]}
    assert ladder["+ position-dependent masking"] == PAPER["table2_masking"]["half_life_0.10"][0]
    assert ladder["+ remove token shift"] == PAPER["table2_masking"]["uniform"][0]
    assert yaml.safe_load((ROOT / "analysis" / "paper.yaml").read_text()) == PAPER


DECODED = "per doubling of the decoding block, at 0.5 forwards per token (blocks 4 to 16)"


def test_what_does_not_hold_is_compared_within_each_budget(results):
    table = tables(results, "more_tokens")[0].set_index("comparison")
    assert list(table) == ["1,000 tokens", "4,000 tokens"]
    expected = {  # 0.7 − (0.4 + 0.5) / 2 and 0.8 − (0.6 + 0.7) / 2; positional − uniform: 0.6 − 0.7 and 0.7 − 0.8
        "inner − outer values of training block, quadratic": ("+25.0 points", "+15.0 points"),
        "half-life 0.1 − uniform, TPF 1": ("−10.0 points", "−10.0 points"),
        DECODED: ("+2.9 points", "+10.0 points"),
    }
    for what, starts in expected.items():
        for cell, start in zip(table.loc[what], starts, strict=True):
            assert cell.startswith(start) and cell.endswith("; 3 seeds"), what
    assert len(table) == 4  # and the drift, which is the same at both
    assert table.loc["change of the weights per doubling of the training block"].nunique() == 1


def test_what_was_not_trained_at_more_tokens_is_left_out_of_the_comparisons():
    study = Study()
    for block in (4, 8):
        study.own(study.point("figure3_block_size", f"block_size={block}", block_size=block), 0.5)
    assert all(is_empty(e) for e in shown(study.results, "more_tokens"))


def test_one_budget_of_examples_is_one_budget_in_every_seed_and_block_size():
    """It is of other tokens in each: longer blocks have more fill, and seeds other rows."""
    study = Study()
    for seed, (times, per_times) in product(range(3), ((1, 1_000_000), (4, 4_000_000))):
        budget = {"budget": f"{times * 11500} examples"}
        for block in (4, 16, 64):
            tokens = {"tokens": per_times + 1000 * seed + 4000 * block * times, "block_size": block}
            sweep = "figure3_block_size" if times == 1 else "more_tokens"
            study.own(study.point(sweep, f"block_size={block}", seed, **tokens, **budget), 0.5 + 0.1 * (block == 16))
        for shift in (True, False):
            choices = {"token_shift": shift, "tokens": per_times + 1000 * seed}
            study.own(
                study.point("shift_by_budget", f"{shift}, {times}", seed, **choices, **budget), 0.5, bits_per_byte=1
            )
    blocks = MODULES["more_tokens"].BY_BUDGET["block_size_sweet_spot"](study.results)
    assert [effect.seeds for _, effect in blocks] == [3, 3]
    gained = tables(study.results, "shift_by_budget")[0]
    assert len(gained) == 2 and gained["tokens"].nunique() == 2
    for name in ("more_tokens", "shift_by_budget"):
        assert all(cell.seeds == 3 for cell in tables(study.results, name)[-1]["accuracy %"])
