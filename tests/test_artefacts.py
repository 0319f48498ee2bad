"""What every table and figure keeps to: its place, what it shows with all its runs, with one seed and without any."""

from functools import cache

import pytest
from common import ROOT, everyday, one_in
from shown import MODULES, PAPER, shown, whole_results

from analysis.pages.exhibits import Plot, Table
from analysis.pages.sections import is_empty
from analysis.tables.results import Results

pytestmark = pytest.mark.trains  # takes seconds


@pytest.fixture(scope="module")
def exhibits():
    """What an artefact shows of a whole study: made once, however many tests look at it."""
    return cache(lambda name: shown(whole_results(), name))


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


@pytest.mark.parametrize("name", one_in(2, MODULES))
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


@pytest.mark.parametrize("name", everyday(MODULES, 5))
def test_an_artefact_takes_one_seed(name, of_one_seed):
    assert all(not is_empty(e) for e in shown(of_one_seed, name))


@pytest.mark.parametrize("name", everyday(sorted({n for n in MODULES if n != "figure7_masking"}), 5))
def test_accuracy_is_never_shown_without_forwards(name, exhibits):
    for table in (exhibit for exhibit in exhibits(name) if isinstance(exhibit, Table)):
        columns = set(table.frame.columns)
        if "accuracy %" in columns and "bits/byte" not in columns:
            assert {"NFE", "TPF"} <= columns


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
        ("table7_lr", "table7_lr", [1, 1, 1]),
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
