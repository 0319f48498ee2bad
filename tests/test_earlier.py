"""Results without their runs: a study adds to them, and makes again only what they do not know."""

import json
import shutil

import pytest
from fabricated_runs import SWEEP, fabricate, found, write_sweep

from analysis.plan.sweep import load_sweep
from analysis.report import main
from analysis.study import plan_points
from analysis.tables.collect import collect
from analysis.tables.earlier import Earlier
from analysis.tables.results import COLUMNS, Results
from dlm.runs.digest import digest

pytestmark = pytest.mark.trains

MASKED = {"result": {"block_size": 2, "probability": [0.25, 0.75], "by_hidden": []}}
CHILD = """
title: child
points:
  child: {label: child, overrides: [model=run, "model.run=@SWEEP:g", logger=csv]}
"""


def measure(run, evaluation):
    path = run.folder / evaluation.file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(MASKED))


def saved(results, path) -> bytes:
    results.save(path)
    return path.read_bytes()


@pytest.fixture
def sweeps(tmp_path):
    return write_sweep(tmp_path / "sweeps")


@pytest.fixture
def whole(sweeps, tmp_path):
    """The results of one run with its measurement; the run is removed."""
    point = found(sweeps)["g"]
    run = fabricate(tmp_path, point, 0.6)
    for evaluation in point.evaluations:
        measure(run, evaluation)
    results = collect(sweeps, tmp_path, ["seed=0"])
    shutil.rmtree(run.folder)
    return results


def test_results_are_the_same_with_their_runs_and_without(sweeps, whole, tmp_path):
    assert all(len(getattr(whole, t)) for t in ("runs", "evaluations", "drift", "positions", "curves"))
    content = saved(whole, tmp_path / "whole.json")
    again = collect(sweeps, tmp_path, ["seed=0"], Earlier(Results.load(tmp_path / "whole.json")))
    assert saved(again, tmp_path / "again.json") == content
    empty = collect(sweeps, tmp_path, ["seed=0"])
    assert empty.runs.empty and empty.positions.empty


def test_a_run_adds_to_earlier_results_and_one_that_is_there_counts_instead_of_them(sweeps, whole, tmp_path):
    fabricate(tmp_path, found(sweeps)["f"], 0.3)
    results = collect(sweeps, tmp_path, ["seed=0"], Earlier(whole))
    own = results.of("evaluations", SWEEP).query("model == 'dlm'")
    assert dict(zip(own["point"], own["accuracy"], strict=True)) == {"f": 0.3, "g": 0.6}
    fabricate(tmp_path, found(sweeps)["g"], 0.7)  # its measurement is not there yet: the earlier one stands
    results = collect(sweeps, tmp_path, ["seed=0"], Earlier(whole))
    own = results.of("evaluations", SWEEP).query("model == 'dlm'")
    assert dict(zip(own["point"], own["accuracy"], strict=True)) == {"f": 0.3, "g": 0.7}
    assert list(results.positions["value"]) == [0.25, 0.75] * 3 and len(results.runs) == 2


def test_a_measurement_is_known_under_whatever_name_another_sweep_asks_for_it(sweeps, whole, tmp_path):
    text = (sweeps / f"{SWEEP}.yaml").read_text()
    (sweeps / f"{SWEEP}.yaml").unlink()
    (sweeps / "other.yaml").write_text(text.replace("  masked:", "  hidden:"))
    results = collect(sweeps, tmp_path, ["seed=0"], Earlier(whole))
    assert set(results.of("positions", "other")["evaluation"]) == {"hidden", "again"} and len(results.positions) == 6


def test_of_a_measurement_with_several_names_each_keeps_its_own_rows(sweeps, whole):
    """What it is called may be part of a row, as the setting is of a decoding's."""
    point = found(sweeps)["g"]
    masked, again = (next(e for e in reversed(point.evaluations) if e.name == name) for name in ("masked", "again"))
    assert masked.file == again.file
    whole.positions.loc[whole.positions["evaluation"] == "again", "quantity"] = "other"
    earlier = Earlier(whole)
    for sweep, evaluation, quantity in ((SWEEP, masked, "masked"), (SWEEP, again, "other"), ("new", again, "masked")):
        rows = earlier.tables_of(sweep, point, evaluation)["positions"]
        assert [row["quantity"] for row in rows] == [quantity] * 2


def test_a_study_makes_only_what_earlier_results_do_not_know(sweeps, whole, tmp_path):
    sweep = load_sweep(sweeps / f"{SWEEP}.yaml", ["seed=0,1"])
    known = found(sweeps)["g"].run
    left = plan_points([sweep], Earlier(whole))
    assert {p.run for p in left} == {p.run for p in sweep.points} - {known} and len(left) == len(sweep.points) - 1
    unmeasured = Results(**{n: getattr(whole, n) for n in COLUMNS} | {"positions": Results.of_rows({}).positions})
    again = {p.run: p for p in plan_points([sweep], Earlier(unmeasured))}
    assert {e.file for e in again[known].evaluations} == {e.file for e in found(sweeps)["g"].evaluations}


def test_what_another_point_needs_is_trained_though_it_is_known_and_not_measured_again(sweeps, whole):
    (sweeps / "child.yaml").write_text(CHILD.replace("SWEEP", SWEEP))
    child = load_sweep(sweeps / "child.yaml", ["seed=0"])
    first, second = plan_points([child], Earlier(whole))
    assert first.run == found(sweeps)["g"].run and first.evaluations == () and second.name == "child"


def test_nothing_is_known_of_what_was_made_with_other_settings(sweeps, whole):
    point = found(sweeps)["g"]
    other = load_sweep(sweeps / f"{SWEEP}.yaml", ["seed=0", "evaluation.max_new_tokens=9"])
    (changed,) = [p for p in other.points if p.name == "g"]
    assert changed.run == point.run and digest(changed.evaluated_with) != whole.runs["evaluated"].item()
    earlier = Earlier(whole)
    assert earlier.lacking(point) is None and earlier.state(changed) is None and earlier.lacking(changed) is not None
    whole.positions["file"] = "measurements/masked-other.json"
    assert Earlier(whole).lacking(point).evaluations == point.evaluations


def test_a_run_that_diverged_is_not_trained_again_and_stays_listed(sweeps, tmp_path):
    run = fabricate(tmp_path, found(sweeps)["g"], 0.1)
    run.update(diverged=True)
    results = collect(sweeps, tmp_path, ["seed=0"])
    shutil.rmtree(run.folder)
    earlier = Earlier(results)
    assert run.id not in {p.run for p in plan_points([load_sweep(sweeps / f"{SWEEP}.yaml", ["seed=0"])], earlier)}
    again = collect(sweeps, tmp_path, ["seed=0"], earlier)
    assert saved(again, tmp_path / "a.json") == saved(results, tmp_path / "b.json")


def test_the_report_is_added_to(sweeps, whole, tmp_path, capsys):
    whole.save(tmp_path / "out" / "results.json")
    fabricate(tmp_path, found(sweeps)["f"], 0.3)
    folders = ["--sweeps", str(sweeps), "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*folders, "--add", "seed=0"]) == 0
    assert set(Results.load(tmp_path / "out" / "results.json").of("runs", SWEEP)["point"]) == {"f", "g"}
    before = (tmp_path / "out" / "results.json").read_bytes()
    with pytest.raises(SystemExit):  # both are of seed 0
        main([*folders, "--add", "seed=1"])
    assert "2 runs of" in capsys.readouterr().err and (tmp_path / "out" / "results.json").read_bytes() == before
    with pytest.raises(SystemExit):
        main([*folders, "--add", "--committed"])
    assert "not allowed with" in capsys.readouterr().err
