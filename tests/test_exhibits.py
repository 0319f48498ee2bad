"""Single tables and figures from hand-made results: known answers, marks and labels."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from shown import MODULES, PAPER, plots, shown, tables
from study_tables import ITEMS, Study, correct

from analysis.artefacts.figure12_position_loss import periodic_share
from analysis.artefacts.shift_by_budget import block_losses, gain_by_position
from analysis.evidence.compare import by_point
from analysis.pages.exhibits import Table
from analysis.pages.plots import lines
from analysis.pages.sections import is_empty
from analysis.tables.results import DLM, columns

pytestmark = pytest.mark.trains  # takes seconds


def test_a_table_has_no_column_of_tasks_that_were_not_asked():
    rows = pd.DataFrame(
        {"point": ["a"], "label": ["A"], "seed": [0], "accuracy": [0.5], "code": [None], "parallel": 0.25}
    )
    measures = {"accuracy": "accuracy %", "code": "code %", "parallel": "parallel %", "right_steps": "steps %"}
    assert list(by_point(rows, measures)) == ["point", "label", "accuracy %", "parallel %"]


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


def test_the_decoding_block_is_tested_on_the_models_of_table_1():
    study = Study()
    study.point("table1_attention", "g", block_size=8)
    for block in (4, 8):
        run = study.point("figure3_block_size", f"block_size={block}", block_size=block)
        for size in (4, 8, 16)[: 5 - block // 4]:
            study.evaluation(run, correct(0.5), "figure3_block_size", "forwards", eval_block_size=size, threshold=1.0)
    rows = MODULES["figure5_decoding_block_size"].by_block(study.results)
    assert set(rows["block_size"]) == {8}


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
