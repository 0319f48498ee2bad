"""The panels of a workspace, drawn from what runs logged offline."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dlm.workspace.drawn import drawn, offline_runs
from dlm.workspace.records import Logged, located


def logged(name: str, attention: str, accuracy: float, tpf: float) -> Logged:
    history = [{"tokens": tokens, "val/nelbo": tokens / 100 + accuracy} for tokens in (100, 200)]
    summary = {"eval/tpf4/accuracy": accuracy, "eval/tpf4/tpf": tpf}
    return Logged(Path(), SimpleNamespace(run_id=name), {"attention": attention}, history, summary)


RUNS = [logged("a", "block", 0.5, 2.0), logged("b", "block", 0.7, 3.0), logged("c", "bidir", 0.4, 2.5)]


def axes_of(*panels):
    ((name, figure),) = drawn([{"name": "One", "panels": panels}], RUNS)
    assert name == "One"
    return [ax for ax in figure.axes if ax.axison]


def test_the_lines_of_a_panel_are_the_rows_that_runs_have_logged():
    single, grouped = axes_of(
        {"lines": {"title": "All", "y": ["val/nelbo"]}},
        {"lines": {"title": "By", "y": ["val/nelbo"], "by": "attention"}},
    )
    assert [[*line.get_ydata()] for line in single.lines] == [[1.5, 2.5], [1.7, 2.7], [1.4, 2.4]]
    assert [[*line.get_xdata()] for line in single.lines] == [[100, 200]] * 3
    assert [text.get_text() for text in grouped.get_legend().get_texts()] == ["block", "bidir"]
    assert grouped.lines[0].get_color() == grouped.lines[1].get_color() != grouped.lines[2].get_color()


def test_a_point_is_a_run_and_a_bar_the_mean_of_those_with_the_same_value():
    points, bars = axes_of(
        {"scatter": {"x": "eval/tpf4/tpf", "y": "eval/tpf4/accuracy", "best": True}},
        {"bars": {"title": "Accuracy", "metrics": ["eval/tpf4/accuracy"], "by": "attention"}},
    )
    assert points.collections[0].get_offsets().tolist() == [[2.0, 0.5], [2.5, 0.4], [3.0, 0.7]]
    assert [*points.lines[0].get_ydata()] == [0.5, 0.5, 0.7]  # the best so far
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([0.6, 0.4])


def test_what_nobody_has_logged_is_not_drawn():
    empty = {"name": "Empty", "panels": [{"lines": {"title": "None", "y": ["train/none"]}}, {"compare": {}}]}
    assert not [*drawn([empty], RUNS)]


def test_a_folder_without_offline_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run that logged to W&B offline: name a folder of runs"):
        offline_runs(tmp_path)


def test_a_picture_is_found_in_the_part_of_the_run_that_logged_it(tmp_path):
    row = {"tokens": 1, "drift/heatmap": {"_type": "image-file", "path": "media/a.png"}}
    assert located(row, tmp_path) == {
        "tokens": 1,
        "drift/heatmap": {"_type": "image-file", "path": str(tmp_path / "media/a.png")},
    }
