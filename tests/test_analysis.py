"""The study: its points, what is trained, what the tables say, how claims are decided, what the report shows."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from analysis.claims import accuracy_verdict, drift_verdict
from analysis.figure2e import drift_by_layer, figure2e
from analysis.report import build_report, paper_numbers
from analysis.runs import ONE_TOKEN, rows_of, tidy
from analysis.study import study
from analysis.sweep import load_sweep
from analysis.table1 import parallel_table, table1
from dlm.data.tasks import FAMILIES
from dlm.drift import MEASURES
from dlm.runs import Run

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
PAPER = paper_numbers()
N = 90  # items of a fabricated run


@pytest.fixture(scope="module")
def sweep():
    return load_sweep(ROOT / "sweeps" / "table1_attention.yaml")


def fabricate(runs_dir, point, accuracy: float, drift: float = 0.1, wrong_first: bool = True) -> Run:
    """A finished run in which the first (or last) items are wrong."""
    run = Run(runs_dir / point.run)
    run.folder.mkdir(parents=True)
    right = round(accuracy * N)
    correct = np.r_[np.zeros(N - right, bool), np.ones(right, bool)][:: 1 if wrong_first else -1]
    pd.DataFrame({"setting": ONE_TOKEN, "correct": correct}).to_csv(run.folder / "items.csv", index=False)
    kinds = [(layer, kind) for layer in range(4) for kind in ("attention", "ffn")]
    pd.DataFrame(
        [{"tensor": f"{k}{i}", "layer": i, "kind": k, "numel": 10} | dict.fromkeys(MEASURES, drift) for i, k in kinds]
    ).to_csv(run.folder / "drift.csv", index=False)

    def measured(value: float) -> dict:
        setting = {"accuracy": value, "low": value - 0.05, "high": value + 0.05, "n": N, "tpf": 1.0, "nfe": 7.0}
        families = dict.fromkeys(FAMILIES, setting)
        generation = [
            setting | {"name": ONE_TOKEN, "threshold": None, "families": families},
            setting | {"name": "TPF≈2", "threshold": 0.8, "families": families, "tpf": 2.1},
        ]
        return {"likelihood": {"nats": 2.0, "bits_per_byte": 1.1}, "cloze": 0.5, "generation": generation}

    run.update(
        status="finished",
        evaluation={"parent": measured(0.95), "dlm": measured(accuracy)},
        drift={f"{kind}/{m}": drift for kind in ("attention", "ffn") for m in MEASURES},
        tokens=1000,
        train_seconds=60.0,
        ended=1.8e9,
        commit="abc",
        versions={"python": "3"},
        machine={"cpus": 2, "platform": "somewhere"},
        parent={"source": "tiny", "fingerprint": "f00"},
    )
    return run


def points(sweep, *names):
    return [next(p for p in sweep.points if p.name == name) for name in names]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_composes_and_its_points_are_distinct_runs(path):
    found = load_sweep(path)
    assert len({p.run for p in found.points}) == len(found.points) > 1
    assert all(re.fullmatch(r"[0-9a-f]{12}", p.run) for p in found.points)


def test_the_doubled_row_has_twice_the_budget_whatever_the_budget_is():
    path = ROOT / "sweeps" / "table1_attention.yaml"
    for tokens in (None, 4096):
        found = load_sweep(path, tokens=tokens)
        budget = {p.name: int(dict(o.split("=") for o in p.overrides)["tokens"]) for p in found.points}
        assert budget["e"] == 2 * found.tokens and {budget[n] for n in "bcdfghi"} == {found.tokens}


def test_the_points_cover_the_papers_rows_but_the_parent(sweep):
    assert set(sweep.labels) | {"a"} == set(PAPER["table1"]["average"])
    named = {c[side] for c in PAPER["claims"] for side in ("better", "worse")}
    named |= {c[side] for c in PAPER["drift_claims"] for side in ("more", "less")}
    assert named <= set(sweep.labels)


def test_a_missing_sweep_is_named_beside_those_that_exist():
    with pytest.raises(ValueError, match=r"nowhere.yaml' does not exist: choose one of .*table1_attention.yaml"):
        load_sweep(ROOT / "sweeps" / "nowhere.yaml")


def test_the_tidy_table_repeats_the_record(sweep, tmp_path):
    (point,) = points(sweep, "g")
    run = fabricate(tmp_path, point, 0.6)
    rows = pd.DataFrame(rows_of(point, run))
    assert list(rows["model"]) == ["parent", "parent", "dlm", "dlm"]
    dlm = rows[rows["model"] == "dlm"].iloc[0]
    assert dlm["accuracy"] == 0.6 and dlm["n"] == N and dlm["maths"] == pytest.approx(0.6)
    assert dlm["drift/ffn/relative"] == 0.1 and np.isnan(rows.iloc[0]["drift/ffn/relative"])


def test_table1_shows_measured_rows_and_names_missing_ones(sweep, tmp_path):
    found = [(p, fabricate(tmp_path, p, a)) for p, a in zip(points(sweep, "c", "g"), (0.2, 0.76), strict=True)]
    table = table1(sweep, tidy(found), PAPER["table1"]).set_index("row")
    assert table.loc["g", "accuracy"] == pytest.approx(76) and table.loc["g", "kept"] == pytest.approx(0.8)
    assert table.loc["a", "accuracy"] == pytest.approx(95) and table.loc["a", "kept"] == 1
    assert table.loc["g", "paper kept"] == pytest.approx(38.41 / 41.79)
    assert table.loc["c", "cache"] == "no" and table.loc["g", "cache"] == "yes"
    assert table.loc["d", "seeds"] == 0 and table.loc["d", "runs"] == "no finished run"
    assert set(parallel_table(sweep, tidy(found))["setting"]) == {ONE_TOKEN, "TPF≈2"}


def test_several_seeds_are_averaged_with_their_spread(sweep, tmp_path):
    (point,) = points(sweep, "g")
    other = replace(point, seed=1, run="0" * 12)
    found = [(point, fabricate(tmp_path, point, 0.5)), (other, fabricate(tmp_path, other, 0.7))]
    row = table1(sweep, tidy(found), PAPER["table1"]).set_index("row").loc["g"]
    assert row["accuracy"] == pytest.approx(60) and row["seeds"] == 2 and row["items"] == 2 * N
    assert row["interval"] == "± 14.1"  # 20 points apart: 20 / sqrt(2)


@pytest.mark.parametrize(
    ("better", "worse", "verdict", "won"),
    [(0.8, 0.4, "agrees", "36 to 0"), (0.4, 0.8, "disagrees", "0 to 36"), (0.5, 0.48, "undecided", "2 to 0")],
)
def test_an_accuracy_claim_is_decided_by_the_items_that_differ(better, worse, verdict, won, sweep, tmp_path):
    claim = next(c for c in PAPER["claims"] if c["id"] == "clean_context_helps")
    f, d = points(sweep, "f", "d")
    found = [(f, fabricate(tmp_path, f, better)), (d, fabricate(tmp_path, d, worse))]
    decided = accuracy_verdict(claim, found, PAPER["table1"])
    assert decided.verdict == verdict and won in decided.test and decided.paper == "+9.5 points"
    assert decided.ours == f"{100 * (round(better * N) - round(worse * N)) / N:+.1f} points"


def test_mcnemar_counts_only_discordant_items(sweep, tmp_path):
    claim = next(c for c in PAPER["claims"] if c["id"] == "clean_context_helps")
    f, d = points(sweep, "f", "d")
    found = [(f, fabricate(tmp_path, f, 0.5)), (d, fabricate(tmp_path, d, 0.5, wrong_first=False))]
    decided = accuracy_verdict(claim, found, PAPER["table1"])
    assert decided.verdict == "undecided" and "45 to 45 of 90 items, p = 1" in decided.test


def test_a_drift_claim_needs_all_layers(sweep, tmp_path):
    claim = PAPER["drift_claims"][0]
    more, less = points(sweep, claim["more"], claim["less"])
    found = [(more, fabricate(tmp_path, more, 0.2, drift=0.3)), (less, fabricate(tmp_path, less, 0.2, drift=0.1))]
    drift = drift_by_layer(found)
    assert drift_verdict(claim, drift).verdict == "agrees" and drift_verdict(claim, drift).ours == "× 3.00"
    drift.loc[(drift["point"] == claim["more"]) & (drift["layer"] == 2), "relative"] = 0.05
    assert drift_verdict(claim, drift).verdict == "undecided"


def test_a_claim_without_runs_says_so():
    assert accuracy_verdict(PAPER["claims"][0], [], PAPER["table1"]).verdict == "no runs"
    assert drift_verdict(PAPER["drift_claims"][0], drift_by_layer([])).verdict == "no runs"


def test_figure_2e_draws_one_line_per_point_with_runs(sweep, tmp_path):
    found = [(p, fabricate(tmp_path, p, 0.5)) for p in points(sweep, "c", "g")]
    figure = figure2e(drift_by_layer(found), sweep.labels)
    assert [[len(line.get_xdata()) for line in axes.lines] for axes in figure.axes] == [[4, 4], [4, 4]]


@pytest.mark.parametrize("names", ["", "cg", "bcdefghi"])
def test_the_report_shows_what_there_is_and_names_what_is_missing(names, sweep, tmp_path):
    for point in points(sweep, *names):
        fabricate(tmp_path / "runs", point, 0.5)
    page = build_report(sweep, tmp_path / "runs", tmp_path / "out").read_text()
    text = (tmp_path / "out" / "index.md").read_text()
    missing = 8 - len(names)
    for rendered in (page, text):
        assert (f"{missing} of 8 runs are missing" in rendered) == bool(missing)
        assert all(sweep.points[i].run in rendered for i in range(8) if sweep.points[i].name in names)
        assert ("nothing is plotted" in rendered) == (not names)
        assert "nan" not in re.sub(r"base64,[^\"]*", "", rendered).lower().replace("provenance", "")
    assert page.count("<img") == (3 if names else 0) and "http" not in page.replace("https://", "")
    assert len(list((tmp_path / "out").glob("figure2e_*.png"))) == (3 if names else 0)


def test_the_study_trains_what_is_missing_and_a_failing_job_does_not_stop_the_others(sweep, tmp_path, capsys):
    fabricate(tmp_path, points(sweep, "g")[0], 0.5)

    def command(point):
        return [sys.executable, "-c", f"print('hello'); raise SystemExit({int(point.name == 'c')})"]

    failed = study(sweep.points, tmp_path, 2, command)
    assert [p.name for p in failed] == ["c"]
    printed = capsys.readouterr().out
    assert "1 of 8 runs are there, 7 to train" in printed and printed.count("done in") == 6
    assert f"c (bidirectional), seed 0, run {failed[0].run} FAILED" in printed
    assert (tmp_path / ".logs" / f"{failed[0].run}.log").read_text() == "hello\n"


def test_an_unevaluated_or_broken_off_run_is_missing(sweep, tmp_path):
    point = points(sweep, "g")[0]
    run = fabricate(tmp_path, point, 0.5)
    assert point.find(tmp_path)
    run.update(evaluation={})
    assert point.find(tmp_path) is None
    run.update(evaluation={"dlm": 1}, status="interrupted")
    assert point.find(tmp_path) is None
    assert json.loads(run.record_path.read_text())["status"] == "interrupted"
