"""The study: its points, what is trained, what the tables say, how claims are decided, what the report shows."""

import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from analysis.claims import accuracy_verdict, drift_verdict
from analysis.figure2e import drift_by_layer, figure2e
from analysis.report import build_report, paper_numbers, reproduce
from analysis.report import main as report
from analysis.runs import MATHS, ONE_TOKEN, rows_of, tidy
from analysis.sweep import load_sweep
from analysis.table1 import parallel_table, table1
from dlm.data.tasks import FAMILIES
from dlm.drift import MEASURES
from dlm.runs import Run

TABLE1 = ROOT / "sweeps" / "table1_attention.yaml"
PAPER = paper_numbers()
N = 90  # items of a fabricated run


@pytest.fixture(scope="module")
def sweep():
    return load_sweep(TABLE1, ["seed=0"])


def fabricate(runs_dir, point, accuracy: float, drift: float = 0.1, wrong_first: bool = True) -> Run:
    """A finished run in which the first (or last) items are wrong."""
    run = Run(runs_dir / point.run)
    run.folder.mkdir(parents=True)
    right = round(accuracy * N)
    correct = np.r_[np.zeros(N - right, bool), np.ones(right, bool)][:: 1 if wrong_first else -1]
    items = pd.DataFrame({"family": np.resize(FAMILIES, N), "setting": ONE_TOKEN, "correct": correct})
    items.to_csv(run.folder / "items.csv", index=False)
    kinds = [(layer, kind) for layer in range(4) for kind in ("attention", "ffn")]
    pd.DataFrame(
        [{"tensor": f"{k}{i}", "layer": i, "kind": k, "numel": 10} | dict.fromkeys(MEASURES, drift) for i, k in kinds]
    ).to_csv(run.folder / "drift.csv", index=False)

    def measured(value: float) -> dict:
        setting = {"accuracy": value, "low": value - 0.05, "high": value + 0.05, "n": N, "tpf": 1.0, "nfe": 7.0}
        families = {f: {"accuracy": round(10 * value) / 10, "n": N // len(FAMILIES)} for f in FAMILIES}
        generation = [
            setting | {"name": ONE_TOKEN, "threshold": None, "families": families},
            setting | {"name": "TPF≈2", "threshold": 0.8, "families": families, "tpf": 2.1},
        ]
        likelihood = {"nats": 2.0, "standard_error": 0.1, "bits_per_byte": 1.0, "tokens": 12_700}
        return {"likelihood": likelihood, "cloze": 0.5, "cloze_items": 100, "generation": generation}

    run.update(
        status="finished",
        config=point.config,
        choices={"attention": point.config["attention"]["_target_"]},
        evaluation={
            "settings": point.config["evaluation"],
            "parent": measured(0.95),
            "dlm": measured(accuracy),
        },
        drift={f"{kind}/{m}": drift for kind in ("attention", "ffn") for m in MEASURES},
        tokens=1000,
        train_seconds=60.0,
        ended=1.8e9,
        commit="abc",
        versions={"python": "3"},
        machine={"cpus": 2, "platform": "somewhere"},
        parent={"source": "tiny", "fingerprint": "f00"},
        parameters=1_115_520,
    )
    return run


def points(sweep, *names):
    return [next(p for p in sweep.points if p.name == name) for name in names]


def test_the_points_cover_the_papers_rows_but_the_parent(sweep):
    assert set(sweep.labels) | {"a"} == set(PAPER["table1"]["average"])
    named = {c[side] for c in PAPER["claims"] for side in ("better", "worse")}
    named |= {c[side] for c in PAPER["drift_claims"] for side in ("more", "less")}
    assert named <= set(sweep.labels)


def test_the_tidy_table_repeats_the_record(sweep, tmp_path):
    (point,) = points(sweep, "g")
    run = fabricate(tmp_path, point, 0.6)
    rows = pd.DataFrame(rows_of(point, run))
    assert list(rows["model"]) == ["parent", "parent", "dlm", "dlm"]
    dlm = rows[rows["model"] == "dlm"].iloc[0]
    assert dlm["accuracy"] == 0.6 and dlm["accuracy_n"] == N and dlm["accuracy_low"] == pytest.approx(0.55)
    assert dlm["maths"] == pytest.approx(0.6) and dlm["maths_n"] == 10 * len(MATHS)
    assert dlm["bits_per_byte_high"] == pytest.approx(1 + 1.96 * 0.05, abs=1e-4)  # 0.1 of 2 nats is 5 %
    assert dlm["block_size"] == 8 and dlm["token_shift"] == False and dlm["attention"].endswith("Block")  # noqa: E712
    assert dlm["drift/ffn/relative"] == 0.1 and np.isnan(rows.iloc[0]["drift/ffn/relative"])


def test_table1_shows_measured_rows_and_names_missing_ones(sweep, tmp_path):
    found = [(p, fabricate(tmp_path, p, a)) for p, a in zip(points(sweep, "c", "g"), (0.2, 0.76), strict=True)]
    table = {row["row"]: row for row in table1(sweep, tidy(found), PAPER["table1"])}
    assert table["g"]["accuracy"] == {"value": pytest.approx(76), "spread": "71.0 – 81.0", "n": N}
    assert table["g"]["kept"] == pytest.approx(0.8) and table["g"]["runs"] == [found[1][1].id]
    assert table["a"]["accuracy"]["value"] == pytest.approx(95) and table["a"]["kept"] == 1
    assert table["g"]["paper_kept"] == pytest.approx(38.41 / 41.79)
    assert table["g"]["paper_change"] == pytest.approx(-3.38)
    assert [name for name, row in table.items() if not row["cache"]] == ["b", "c"]
    assert table["d"]["seeds"] == 0 and "accuracy" not in table["d"] and table["d"]["kept"] is None
    parallel = parallel_table(sweep, tidy(found))
    assert {(r["row"], r["setting"]) for r in parallel} == {(r, s) for r in "cg" for s in (ONE_TOKEN, "TPF≈2")}


def test_several_seeds_are_averaged_with_their_spread(tmp_path):
    sweep = load_sweep(TABLE1, ["seed=0,1"])
    found = [(p, fabricate(tmp_path, p, 0.5 + 0.2 * p.seed)) for p in sweep.points if p.name == "g"]
    row = next(r for r in table1(sweep, tidy(found), PAPER["table1"]) if r["row"] == "g")
    assert row["accuracy"] == {"value": pytest.approx(60), "spread": "± 14.1", "n": N}  # 20 points apart: 20 / sqrt(2)
    assert row["seeds"] == 2 and row["runs"] == [run.id for _, run in found]


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


def test_over_seeds_an_item_counts_once(tmp_path):
    sweep = load_sweep(TABLE1, ["seed=0,1"])
    claim = next(c for c in PAPER["claims"] if c["id"] == "clean_context_helps")
    accuracy = {("f", 0): 0.8, ("f", 1): 0.8, ("d", 0): 0.4, ("d", 1): 0.6}
    found = [(p, fabricate(tmp_path, p, accuracy[p.name, p.seed])) for p in sweep.points if p.name in "fd"]
    decided = accuracy_verdict(claim, found, PAPER["table1"])
    assert decided.verdict == "agrees" and "sign test: 36 to 0 of 90 items" in decided.test
    assert decided.ours == "+30.0 points (+20.0 to +40.0)" and len(decided.runs) == 4


def test_runs_that_answered_different_items_are_not_compared(sweep, tmp_path):
    claim = next(c for c in PAPER["claims"] if c["id"] == "clean_context_helps")
    found = [(p, fabricate(tmp_path, p, 0.5)) for p in points(sweep, "f", "d")]
    path = found[0][1].folder / "items.csv"
    pd.read_csv(path).head(45).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"answered different items .45 and 90.: evaluate both again"):
        accuracy_verdict(claim, found, PAPER["table1"])


def test_a_drift_claim_needs_all_layers(sweep, tmp_path):
    claim = PAPER["drift_claims"][0]
    more, less = points(sweep, claim["more"], claim["less"])
    found = [(more, fabricate(tmp_path, more, 0.2, drift=0.3)), (less, fabricate(tmp_path, less, 0.2, drift=0.1))]
    drift = drift_by_layer(found)
    assert drift_verdict(claim, drift).verdict == "agrees" and drift_verdict(claim, drift).ours == "× 3.00"
    drift.loc[(drift["point"] == claim["more"]) & (drift["layer"] == 2), "relative"] = 0.05
    assert drift_verdict(claim, drift).verdict == "undecided"
    drift.loc[drift["point"] == claim["more"], "relative"] = 0.05
    assert drift_verdict(claim, drift).verdict == "disagrees"


def test_a_claim_without_runs_says_so():
    assert accuracy_verdict(PAPER["claims"][0], [], PAPER["table1"]).verdict == "no runs"
    assert drift_verdict(PAPER["drift_claims"][0], drift_by_layer([])).verdict == "no runs"


def test_figure_2e_draws_one_line_per_point_with_runs(sweep, tmp_path):
    found = [(p, fabricate(tmp_path, p, 0.5)) for p in points(sweep, "c", "g")]
    figure = figure2e(drift_by_layer(found), sweep.labels)
    assert [[len(line.get_xdata()) for line in axes.lines] for axes in figure.axes] == [[4, 4], [4, 4]]


def test_a_figure_has_room_above_its_highest_point(sweep, tmp_path):
    (point,) = points(sweep, "g")
    for stacked in (False, True):
        figure = figure2e(drift_by_layer([(point, fabricate(tmp_path / str(stacked), point, 0.5))]), sweep.labels)
        assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 0.1 for axes in figure.axes)


@pytest.mark.parametrize("names", ["", "cg", "h", "bcdefghi"])
def test_the_report_shows_what_there_is_and_names_what_is_missing(names, sweep, tmp_path):
    for point in points(sweep, *names):
        fabricate(tmp_path / "runs", point, 0.5)
    page = build_report(sweep, tmp_path / "runs", tmp_path / "out").read_text()
    text = (tmp_path / "out" / "index.md").read_text()
    missing = 8 - len(names)
    for rendered in (page, text):
        assert (f"{missing} of 8 runs are missing" in rendered) == bool(missing)
        assert all((p.run in rendered) == (p.name in names) for p in sweep.points)
        assert ("nothing is plotted" in rendered) == (not set(names) & set("bcdfg"))
        assert ("One seed (0)" in rendered) == bool(names)
        assert not re.search(r"\bnan\b|\bNone\b", re.sub(r"base64,[^\"]*", "", rendered))
    assert page.count("<img") == (3 if set(names) & set("bcdfg") else 0) and not re.search(r'(src|href)="http', page)
    assert len(list((tmp_path / "out").glob("figure2e_*.png"))) == 2 * page.count("<img")
    assert str(tmp_path) not in page + text


def test_every_table_row_of_the_markdown_has_as_many_cells_as_its_head(sweep, tmp_path):
    for point in points(sweep, "b", "e", "i"):
        fabricate(tmp_path / "runs", point, 0.5)
    build_report(sweep, tmp_path / "runs", tmp_path / "out")
    for table in re.findall(r"(?:^\|.*\n)+", (tmp_path / "out" / "index.md").read_text(), re.MULTILINE):
        assert len({line.count("|") for line in table.strip().split("\n") if "|ΔW|" not in line}) == 1, table


def test_runs_of_different_parents_or_code_are_pointed_out(sweep, tmp_path):
    for i, point in enumerate(points(sweep, "c", "g")):
        fabricate(tmp_path, point, 0.5).update(parent={"source": "tiny", "fingerprint": f"f0{i}"}, commit=f"c{i}")
    page = build_report(sweep, tmp_path, tmp_path / "out").read_text()
    assert "2 different parents (f00, f01)" in page and "2 versions of the code: c0, c1" in page


def test_a_report_leaves_nothing_of_runs_that_are_gone(sweep, tmp_path):
    fabricate(tmp_path / "runs", points(sweep, "g")[0], 0.5)
    build_report(sweep, tmp_path / "runs", tmp_path / "out")
    build_report(sweep, tmp_path / "none", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index.html", "index.md"]


def test_the_report_takes_the_studys_overrides_in_any_place(tmp_path, capsys):
    assert report(["--runs", str(tmp_path), "--out", str(tmp_path / "out"), "lr=5e-4", "--sweep", str(TABLE1)]) == 0
    assert "0.0005, cosine" in (tmp_path / "out" / "index.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        report(["--sweep", str(TABLE1), "lrr=1"])
    assert "lrr" in capsys.readouterr().err


def test_the_command_in_a_report_makes_that_report():
    default = TABLE1.relative_to(ROOT)
    assert reproduce(default, []) == "make ablation-report"
    assert reproduce(default, ["lr=5e-4", "seed=0,1"]) == "make ablation-report ARGS='lr=5e-4 seed=0,1'"
    assert reproduce(ROOT / "sweeps" / "o.yaml", ["lr=1"]) == "python -m analysis.study sweeps/o.yaml lr=1"
