"""The leaderboard: the area is that under the frontier, a lead that is not decided is seen to be none, a row without
runs is a row, and a verifier's seed is compared with those of the row."""

import re

import numpy as np
import pytest
from common import CONF, ROOT
from omegaconf import OmegaConf
from study_tables import ANSWER, ITEMS, Study, correct

from analysis import leaderboard
from analysis.evidence.frontier import WHOLE, by_seed, next_seed
from analysis.pages.leaderboard import Standing, board, exhibits, standings
from analysis.plan.compose import options_matching
from analysis.plan.sweep import load_sweep
from analysis.tables.results import PARENT, Results

ROWS = ROOT / "sweeps" / "leaderboard" / "recipes.yaml"
SEEING = {"diffusionvl", "bard_vl", "fast_dvlm", "vlm_control"}  # recipes for parents that read images


def row(study, name, seed=0, settings=((1.0, 0.9),), **choices):
    """A row decoded at (forwards per token, accuracy); its parent has 90 %."""
    run = study.point("recipes", f"recipe={name}", seed, label=f"recipe {name}", **choices)
    study.evaluation(run, correct(0.9), model=PARENT, nfe=ANSWER)
    for forwards, accuracy in settings:
        at = {"threshold": forwards, "setting": f"threshold {forwards}", "nfe": forwards * ANSWER, "tpf": 1 / forwards}
        study.evaluation(run, correct(accuracy), "recipes", "threshold", **at)
    return run


def places(study):
    return {place.label: place for place in standings(study.results)}


def area(*settings):
    study = Study()
    row(study, "a", settings=settings)
    return places(study)["a"].area.mean


def test_the_area_is_that_under_the_frontier():
    assert area((1.0, 0.9)) == pytest.approx(0)  # as the AR parent, which needs a forward for every token
    assert area((0.5, 0.9)) == pytest.approx(50)
    assert area((0.5, 0.9), (1.0, 0.9)) == pytest.approx(50)
    between, above = 0.25 * (0.2 + 0.4) / 2, 0.5 * 0.4  # from 0.25 to 0.5 forwards, and from there on
    assert area((0.5, 0.4), (0.25, 0.2)) == pytest.approx(100 * (between + above) / 0.9)


def test_a_setting_that_is_dearer_and_worse_than_another_takes_nothing_off():
    assert area((0.5, 0.9), (0.75, 0.1)) == area((0.5, 0.9))


def test_the_area_is_linear_in_the_outcomes_of_an_item():
    study = Study()
    row(study, "a", settings=((0.5, 0.4), (1.0, 0.8)))
    rows = places(study)["a"].curve
    items = by_seed(rows)[0]
    assert items.shape == (ITEMS,) and items.mean() == pytest.approx(places(study)["a"].area.mean)
    assert set(np.round(items, 6)) == {0.0, *np.round([items.max(), items[items > 0].min()], 6)} and len(WHOLE) == 20


def test_a_setting_that_a_seed_lacks_is_no_part_of_the_frontier():
    study = Study()
    row(study, "a", 0, settings=((0.5, 0.9), (0.1, 0.9)))
    row(study, "a", 1, settings=((0.5, 0.9),))
    assert places(study)["a"].area.mean == pytest.approx(50)


def test_rows_are_ranked_and_a_lead_that_is_not_decided_contains_zero():
    study, rng = Study(), np.random.default_rng(0)
    for seed in range(3):
        row(study, "worse", seed, settings=((0.25, 0.4),))
        row(study, "best", seed, settings=((0.25, 0.9),))
        run = row(study, "near", seed, settings=())
        at = {"setting": "threshold 0.25", "nfe": 0.25 * ANSWER}
        study.evaluation(run, rng.random(ITEMS) < 0.88, "recipes", "threshold", **at)
    study.point("recipes", "recipe=none_yet", label="recipe none_yet", state="not trained")
    table = board(standings(study.results), {}).set_index("row")
    assert list(table.index) == ["best", "near", "worse", "none_yet"] and list(table["rank"])[:3] == [1, 2, 3]
    near, worse = table["behind the first"]["near"], table["behind the first"]["worse"]
    assert near.low < 0 < near.high and worse.high < 0
    assert table["area"]["none_yet"] is None and table["seeds"]["none_yet"] == "no runs"
    assert table["kept % at 1"]["best"].mean == pytest.approx(100)


def test_what_no_setting_reaches_is_not_shown_as_nothing_kept():
    study = Study()
    row(study, "a", settings=((0.4, 0.9),))
    at = places(study)["a"].at
    assert at[0.25] is None and at[0.5].mean == pytest.approx(100)


@pytest.mark.parametrize(
    ("listed", "new", "said"),
    [
        ((50.0, 52.0, 54.0), 51.0, "reproduced"),
        ((50.0, 52.0, 54.0), 20.0, "lower"),
        ((50.0, 52.0, 54.0), 90.0, "higher"),
        ((50.0,), 51.0, "one listed seed cannot say"),
        ((), 51.0, "no run of its own is listed"),
    ],
)
def test_a_seed_of_the_verifier_is_compared_with_those_of_the_row(listed, new, said):
    own = Standing("recipes", "a", "a", values={seed: np.array([area]) for seed, area in enumerate(listed)})
    text = leaderboard.comparison(own, Standing("recipes", "a", "a", values={77: np.array([new])}))
    assert text.endswith(said) and "seed 77: area" in text


def test_one_more_seed_is_expected_in_a_wider_interval_than_the_mean():
    low, high = next_seed([50.0, 52.0, 54.0])
    assert low < 50 and high > 54 and (low + high) / 2 == pytest.approx(52) and next_seed([50.0]) is None


def test_every_recipe_is_a_row_and_a_new_file_a_new_one(tmp_path, monkeypatch):
    names = {path.stem for path in (CONF / "recipe").glob("*.yaml")}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "recipe").mkdir(parents=True)
    (tmp_path / "conf" / "recipe" / "mine.yaml").write_text("# @package _global_\n")
    pattern = OmegaConf.load(ROWS).grid.recipe
    assert options_matching("recipe", pattern) == sorted({*names, "mine"} - {"none", *SEEING})


@pytest.mark.parametrize("pattern", ["sdar", "glob("])
def test_a_grid_that_is_no_list_and_no_glob_is_refused(pattern):
    with pytest.raises(ValueError, match=r"write a list, or glob\(\*\)"):
        options_matching("recipe", pattern)


@pytest.mark.trains
def test_rows_have_the_flops_of_the_scale_and_their_own_choices(tmp_path):
    path = tmp_path / "rows.yaml"
    text = ROWS.read_text().partition("evaluations:")[0]
    path.write_text(re.sub(r"glob\(.*\)", "[efficient_dlm, mars]", text))
    efficient, mars = load_sweep(path, ["seed=0", "scale=embedded"]).points
    assert efficient.budget == mars.budget and efficient.budget[0] == "flops"
    assert efficient.config["masking"]["half_life"] == 0.1 and mars.config["token_shift"] is True


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["embedded", "quick", "smoke", "paper"])
def test_every_row_composes_at_every_scale(scale):
    points = load_sweep(ROWS, ["seed=0", f"scale={scale}"]).points
    assert len({p.run for p in points}) == len(points) == len(list((CONF / "recipe").glob("*.yaml"))) - 1 - len(SEEING)


def test_results_of_the_verifiers_are_added_and_the_newer_run_counts(tmp_path):
    older, newer = Study(), Study()
    row(older, "a", 7, settings=((0.5, 0.9),))
    row(older, "b", 7, settings=((0.5, 0.9),))
    row(newer, "a", 7, settings=((0.25, 0.9),))
    newer.point("recipes", "recipe=c", 7, label="recipe c", state="not trained")
    both = leaderboard.merged(older.results, leaderboard.finished(newer.results))
    found = {place.label: place.area.mean for place in standings(both)}
    assert found == {"a": pytest.approx(75), "b": pytest.approx(50)}
    both.save(tmp_path / "verified.json")
    assert len(Results.load(tmp_path / "verified.json").points) == 2


@pytest.mark.trains
def test_the_page_names_rows_without_runs_and_the_verified_seed(tmp_path):
    study, verified = Study(), Study()
    for seed in range(3):
        row(study, "a", seed, settings=((0.5, 0.9), (1.0, 0.9)))
    study.point("recipes", "recipe=b", label="recipe b", state="not trained")
    row(verified, "a", 1234, settings=((0.5, 0.8),))
    leaderboard.render_board(study.results, verified.results, tmp_path)
    html, text = (tmp_path / "index.html").read_text(), (tmp_path / "index.md").read_text()
    for page in (html, text):
        assert "2 rows, 1 with runs" in page and "no runs" in page and "1234: 44.4" in page
    assert "sweeps/leaderboard/recipes.yaml --point" in html and (tmp_path / "figures" / "leaderboard-1.svg").exists()


def test_a_page_without_any_run_says_so(tmp_path):
    study = Study()
    study.point("recipes", "recipe=b", label="recipe b", state="not trained")
    leaderboard.render_board(study.results, Study().results, tmp_path)
    assert "No finished run" in (tmp_path / "index.html").read_text() and len(exhibits(study.results, Study().results))


@pytest.mark.parametrize("arguments", [["verify"], ["verify", "small_budget"], ["verify", "seed=3"]])
def test_verify_asks_for_a_row_and_a_seed(arguments, capsys):
    with pytest.raises(SystemExit):
        leaderboard.main(arguments)
    assert "verify needs a row and a seed of your choice" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.trains
def test_a_row_is_trained_ranked_and_verified_at_the_smallest_scale(tmp_path, monkeypatch, capsys):
    """The whole way, by its commands: two rows, the page, and a seed of the verifier's."""
    runs, out = tmp_path / "runs", tmp_path / "board"
    where = ["--runs", str(runs), "--out", str(out)]
    monkeypatch.chdir(ROOT)
    study = [leaderboard.sys.executable, "-m", "analysis.study", str(ROWS), "scale=smoke", "--runs", str(runs)]
    named = ["--point", "recipe=small_budget", "--point", "recipe=ar_control"]
    leaderboard.subprocess.run([*study, *named], check=True)
    assert leaderboard.main(["scale=smoke", *where]) == 0
    assert "2 with runs" in (out / "index.md").read_text()
    assert leaderboard.main(["verify", "small_budget", "seed=1234", "scale=smoke", *where]) == 0
    assert "seed 1234: area" in capsys.readouterr().out and "1234: " in (out / "index.md").read_text()
    with pytest.raises(SystemExit):
        leaderboard.main(["verify", "small_budget", "seed=0", "scale=smoke", *where])
    assert "is one that recipe=small_budget was made with" in capsys.readouterr().err
