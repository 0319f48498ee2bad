"""The page's parts: a condition keeps its colour, a point says where it comes from, a comparison is drawn where its
value is, and a table is narrow on the page and whole in its download."""

import csv
import io
import re
from urllib.parse import unquote

import pandas as pd
import pytest
from study_tables import Study

from analysis.artefacts import artefacts, by_family
from analysis.evidence.effect import Effect
from analysis.evidence.intervals import Mean
from analysis.evidence.kept import with_kept
from analysis.evidence.stats import Estimate
from analysis.pages import render, tips
from analysis.pages.claims import Claim, paper_numbers
from analysis.pages.colours import NAMED, style
from analysis.pages.dots import Dot, dots
from analysis.pages.environment import typeset
from analysis.pages.exhibits import Table, brief
from analysis.pages.forest import Axis, axis_of, mark, outcome, paper_text, percent_text
from analysis.pages.grids import mask
from analysis.pages.plots import align, lines
from analysis.pages.provenance import command, sweep_costs
from analysis.pages.sections import evidence, limits
from analysis.pages.tables_in_page import table_context
from analysis.plan.sweep import Point, Sweep
from analysis.site import mask_pictures
from analysis.study import chosen


def accuracy(value=10.0, error=1.0, **facts):
    """An effect of accuracy over a parent of 80 %, with the paper's over one of 50 %."""
    given = {"seeds": 3, "items": 90, "parent": 80.0, "paper": 5.0, "paper_parent": 50.0, "in_paper": "+5.00"}
    return Effect("a − b", Mean(value, error, 0.0, 2.0, 0.0), **given | facts)


def drift(value=0.2, **facts):
    """An effect in a unit of its own."""
    return Effect(
        "drift", Mean(value, 0.01, 0.0, 2.0, 0.0), seeds=3, unit="nats", digits=2, in_paper="further", **facts
    )


def claim(*effects):
    return Claim("one", "table1_attention", "A claim.", effects, "Because.")


def test_conditions_have_colours_of_their_own_and_names_of_the_same_condition_share_one():
    assert style("g  block-wise, clean context") == style("block-wise, clean context") == style("dLM")
    assert style("half-life 0.1") == style("+ position-dependent masking") != style("half-life 0.25")
    recipes = [
        name for name in NAMED if name in ("MARS", "I-DLM", "TiDAR", "SDAR", "Dream", "DiffuLLaMA", "OPDLM", "BD3-LM")
    ]
    assert len({style(name)[0] for name in recipes}) == len(recipes) == 8


def test_a_condition_that_is_not_in_the_table_keeps_the_colour_made_from_its_name():
    assert style("something new") == style("something new") and re.fullmatch("#[0-9a-f]{6}", style("something new")[0])


def test_conditions_with_an_order_go_along_a_scale_and_each_way_of_decoding_has_its_marker():
    blocks = [style(f"block {size}")[0] for size in (4, 8, 16, 32, 64)]
    greens = [int(colour[3:5], 16) for colour in blocks]
    assert len(set(blocks)) == 5 and greens == sorted(greens)
    assert style("MARS, threshold")[0] == style("MARS, lookup")[0] and style("MARS, threshold") != style("MARS, lookup")


def test_a_point_of_a_line_has_a_title_with_its_seeds_runs_and_command():
    rows = pd.DataFrame({"x": [1, 1, 2, 2], "y": [0.25, 0.75, 0.5, 0.5], "of": "<a>", "seed": [0, 1, 0, 1]})
    rows = rows.assign(run=["r0", "r1", "r2", "r3"], y_n=90)
    made = render.svg(lines(rows, "x", "y", "of", scale=100), "salt", lambda runs: f"make {' '.join(runs)} & more")
    titles = re.findall(r'<g class="tip"><title>(.*?)</title>', made, re.DOTALL)
    assert titles[0].split("\n") == [
        "&lt;a&gt;, x 1",
        "mean 50",
        "seed 0: 25, seed 1: 75",
        "90 items a seed",
        "runs: r0, r1",
        "make r0 r1 &amp; more",
    ]
    assert len(titles) == 2 and tips.MARK not in made


def test_the_command_of_a_point_names_its_sweep_and_is_taken_by_the_study():
    study = Study()
    runs = [study.point("table7_lr", "lr=0.001, x", seed) for seed in (0, 1)]
    assert command(study.results, ["table7_lr"], runs) == (
        "python -m analysis.study sweeps/table7_lr.yaml --point 'lr=0.001, x'"
    )
    assert command(study.results, ["another"], runs) == command(study.results, ["table7_lr"], runs)
    assert command(study.results, ["table7_lr"], ["unknown"]) == ""


def test_points_are_chosen_by_name_and_one_that_is_unknown_is_named():
    points = tuple(Point(name, name, (), {"seed": 0}, name, {}) for name in "ab")
    (only,) = chosen([Sweep("s", "t", points)], ["b"])
    assert [point.name for point in only.points] == ["b"]
    with pytest.raises(ValueError, match="--point 'c' is no point of these sweeps: choose one of a; b"):
        chosen([Sweep("s", "t", points)], ["c"])


def test_effects_of_accuracy_are_drawn_in_percent_of_the_parent_beside_the_papers():
    axis = Axis(-50.0, 50.0, (0.0,))
    drawn = mark(accuracy(margin=4.0), axis)
    assert (drawn.value, drawn.paper, drawn.zero, drawn.margin) == (62.5, 60.0, 50.0, (45.0, 55.0)) and drawn.shared
    assert drawn.low < drawn.value < drawn.high
    assert (percent_text(accuracy()), paper_text(accuracy())) == ("+12.5%", "+10.0%")


def test_an_effect_in_a_unit_of_its_own_fits_the_axis_on_its_side_of_0():
    axis = Axis(-20.0, 80.0, (0.0,))
    up, down = mark(drift(), axis), mark(drift(-0.2), axis)
    assert not up.shared and axis.at(0) < up.low < up.value < up.high < 100
    assert 0 < down.low < down.value < down.high < axis.at(0) and up.paper is None
    assert (percent_text(drift()), paper_text(drift())) == ("+0.20 nats", "further")


def test_the_axis_holds_every_effect_the_papers_and_0():
    axis = axis_of([claim(accuracy(40.0)), claim(accuracy(-10.0, paper=30.0)), claim(drift(9e9), Effect("none"))])
    assert axis.low < -12.5 - 5 and axis.high > 60 and all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert mark(Effect("none"), axis) is None


def test_a_sentence_has_our_number_and_the_papers_or_why_there_is_none():
    assert outcome(claim(accuracy(primary=True))) == ": +12.5% here, +10.0% in the paper."
    assert outcome(claim(drift(primary=True))) == ": +0.20 nats here."
    assert outcome(claim(Effect("x", obstacle="answers are short", primary=True))) == ": answers are short."
    assert outcome(claim(Effect("x", primary=True))) == ": not measured."


def test_a_row_of_dots_has_ours_with_its_interval_and_the_papers_tick():
    figure = dots([Dot("a", "dLM", Estimate(50, 40, 60, 3), 70.0), Dot("b", "MARS", None, None)], "", "percent", 100.0)
    paper, interval, point = figure.axes[0].lines[:3]
    assert (paper.get_xdata()[0], list(interval.get_xdata()), point.get_xdata()[0]) == (70.0, [40, 60], 50)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_aligned_panels_have_the_same_axes():
    rows = pd.DataFrame({"x": [1, 2], "y": [1.0, 2.0], "of": "a"})
    panels = [lines(rows * scale if scale > 1 else rows, "x", "y", "of") for scale in (1, 3)]
    align(panels)
    assert len({(f.axes[0].get_xlim(), f.axes[0].get_ylim()) for f in panels}) == 1


@pytest.mark.parametrize("name", ["ar", "bidir", "block_noisy", "block"])
def test_a_drawn_mask_has_as_much_colour_as_the_predicate_lets_see(name):
    pattern = mask_pictures.patterns()[name]
    area = sum(patch.get_width() * patch.get_height() for patch in mask(pattern, name).axes[0].patches)
    assert area == int(mask_pictures.visible(pattern, mask_pictures.streams(pattern)).sum())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(50, 45.1, 54.9, 3, 90), "±4.9"),
        (Estimate(98, 91.0, 99.5, 1, 90), "91.0–99.5"),
        (Estimate(5.0), ""),
        (Estimate(8.0, 8.0, 8.0, 3), ""),
    ],
)
def test_an_interval_in_a_cell_is_one_word(value, text):
    assert brief(value, 1) == text


def test_a_table_can_be_downloaded_with_every_estimate_in_full():
    frame = pd.DataFrame({"of": ["a, b", "c"], "accuracy %": [Estimate(50, 40, 60, 3, 90, runs=("r",)), None]})
    made = table_context(Table(frame, "A title. And more. Of it."), "here-1")
    assert (made["title"], made["caption"]) == ("A title", "And more. Of it.")
    assert [(row["id"], row["label"], row["runs"]) for row in made["rows"]] == [
        ("here-1-1", "a, b", ("r",)),
        ("here-1-2", "c", ()),
    ]
    head, first, second = csv.reader(io.StringIO(unquote(made["csv"].partition(",")[2])))
    assert head[1:] == ["accuracy %", *(f"accuracy %: {of}" for of in ("low", "high", "seeds", "items"))]
    assert first == ["a, b", "50", "40", "60", "3", "90"] and second == ["c", "", "", "", "", ""]


def test_a_comparison_leads_to_the_rows_of_its_points_and_not_to_a_part_of_one():
    effect = accuracy(runs=("r0", "r1", "r2", "r3"), primary=True)
    cells = [("a", ("r0",)), ("b", ("r0", "r1")), ("c", ("r2", "r3")), ("d", ("r2", "r9"))]
    frame = pd.DataFrame({"of": [name for name, _ in cells], "x": [Estimate(1.0, runs=runs) for _, runs in cells]})
    exhibits = [{"page": table_context(Table(frame, "A.", aside=aside), f"t{aside}")} for aside in (True, False)]
    section = {"name": "table1_attention", "exhibits": exhibits, "sweeps": ("table1_attention",)}
    (found,) = evidence(claim(effect), [section])
    assert [row["id"] for row in found["rows"]] == ["tFalse-2", "tFalse-3"] and found["sweep"] == "table1_attention"


def test_accuracy_is_kept_of_the_parent_of_the_same_run():
    study = Study()
    for name, parent in (("a", 0.8), ("b", 0.4)):
        study.own(study.point("table1_attention", name), 0.4, parent=parent)
    results = study.results
    rows = results.of("evaluations", "table1_attention").query("model == 'dlm' and setting == '1 token/step'")
    assert with_kept(results, rows).set_index("point")["kept"].to_dict() == pytest.approx({"a": 0.5, "b": 1.0})


def test_families_are_panels_where_they_are_recorded_and_else_domains():
    study = Study()
    outcomes = [True] * 45 + [False] * 45
    for name in "bc":
        study.own(study.point("table1_attention", name), 0.5, outcomes=outcomes, families="long one 45 70, sort 45 6")
    titles = {
        title: set(rows["score"])
        for title, rows in by_family.by_family(study.results.evaluations.query("model == 'dlm'"))
    }
    assert titles == {"sort, 6 tokens": {0.0}, "long one, 70 tokens": {1.0}}
    bare = Study()
    bare.own(bare.point("table1_attention", "b"), 0.5)
    (plot,) = artefacts()["by_family"].exhibits(bare.results, paper_numbers())
    assert [figure.axes[0].get_title() for figure in plot.panels] == ["maths", "code", "symbols"]


def test_limits_name_the_scale_the_length_of_answers_and_what_cannot_be_decided():
    study = Study()
    study.own(study.point("table1_attention", "g"), 0.5)
    said = limits(study.results, [claim(accuracy(), Effect("x", obstacle="too short"))])
    assert "Parents of 1.1M parameters" in said[0] and "28.0 forwards" in said[1] and said[2].startswith("1 of 2 ")


def test_what_a_sweep_shares_with_most_is_not_said_again():
    study = Study()
    for sweep, lr in (("table1_attention", 1e-3), ("table2_masking", 1e-3), ("table7_lr", 1e-4)):
        study.point(sweep, "g", lr=lr)
    assert [cost["setting"] for cost in sweep_costs(study.results)] == ["", "", "learning rate 0.0001"]


@pytest.mark.parametrize(
    ("text", "printed"), [("a 95 % interval", "a 95% interval"), (r"a 95 \% x", r"a 95\% x"), ("% of", "% of")]
)
def test_percent_signs_stand_close_to_their_numbers(text, printed):
    assert typeset(text) == printed and typeset(None) is None
