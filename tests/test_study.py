"""The study: which configs are composed, which points are to be made in which order, and how long that takes."""

import os
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import pytest
from common import ROOT, exit_code
from omegaconf import OmegaConf
from study_sweeps import by_name, finish

from analysis.plan.compose import compose_by_hydra, compose_config, resolve_config
from analysis.plan.progress import Progress
from analysis.plan.study import Commands, Study
from analysis.plan.sweep import FINISHED, load_sweep
from analysis.study import main, plan_points
from dlm.config.values import evaluation_of
from dlm.runs.run import Run

pytestmark = pytest.mark.trains


TABLE1 = ROOT / "sweeps" / "table1_attention.yaml"


SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["quick", "embedded"])
def test_what_is_measured_of_a_run_answers_the_items_that_the_run_answered(scale):
    """The report pairs them, item by item."""
    for path in SWEEPS:
        for point in load_sweep(path, [f"scale={scale}", "seed=0"]).points:
            own = point.config["evaluation"]["tasks_per_family"]
            asked = {e.settings.get("items_per_family", own) for e in point.evaluations}
            assert asked <= {own}, f"{path.stem}: {point.name}"


def test_a_run_counts_as_finished_with_the_evaluation_that_its_command_makes(tmp_path):
    """Which records the families of tasks that the data asks."""
    (point,) = [p for p in load_sweep(TABLE1, ["seed=0"]).points if p.name == "g"]
    finish(tmp_path, point)
    run = Run(tmp_path / point.run)
    run.update(evaluation={"settings": None})
    assert point.state(tmp_path) != FINISHED
    cfg = OmegaConf.create(point.config)
    settings = evaluation_of(cfg.evaluation, cfg.data)
    run.update(evaluation={"settings": settings.recorded})
    assert settings.families and point.state(tmp_path) == FINISHED


def test_the_runs_of_the_study_keep_their_ids():
    """Those of Table 1, which hours were spent on (C7)."""
    found = {name: p.run for name, p in by_name(load_sweep(TABLE1, ["seed=0"])).items()}
    assert (found["b"], found["e"], found["g"]) == ("c9bb1ece5b94", "a7b452f2a080", "26f6baa9ebe6")


OVERRIDES = [
    ["attention=block", "block_size=4", "lr=1e-5", "data.mixture={prose: 1.0}", "model.revision='a b'"],
    ["recipe=fast_dllm_v2", "tokens=1_000", "masking.views=1", "trainable=lora", "auxiliary=[ar,confidence]"],
    [
        "auxiliary=ar",
        "auxiliary.ar.weight=0.3",
        "schedule={masking.t_max:{0:0.3,1:1.0}}",
        "evaluation.thresholds=[0.5]",
    ],
    ["+data.families=[addition]", "block_size=2"],
]


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_values_on_top_of_a_composed_config_make_the_config_that_hydra_makes(overrides):
    expected = compose_by_hydra("train", tuple(overrides))
    assert OmegaConf.to_container(compose_config("train", tuple(overrides))) == OmegaConf.to_container(expected)


def test_a_config_with_a_seed_of_its_own_leaves_that_of_the_others_alone():
    plain = resolve_config("train", "plain", [])
    assert resolve_config("train", "seeded", ["seed=3"]) == plain | {"seed": 3} and plain["seed"] != 3
    assert resolve_config("train", "plain", []) == plain


def test_a_plan_asks_hydra_once_for_every_choice_of_options_however_many_points_it_has(tmp_path, monkeypatch):
    """And reads each finished run's record as often, but for no other's sake."""
    path = tmp_path / "large.yaml"
    rates = ", ".join(f"{rate}e-5" for rate in range(1, 9))
    path.write_text(f"title: large\nshared: [logger=csv]\ngrid: {{attention: [bidir, block], lr: [{rates}]}}")
    asked, by_hydra = [], compose_by_hydra.__wrapped__
    monkeypatch.setattr("analysis.plan.compose.compose_by_hydra", cache(lambda *a: asked.append(a) or by_hydra(*a)))
    compose_config.cache_clear()
    points = plan_points([load_sweep(path, ["seed=0,1"])])
    assert len(points) == len({p.run for p in points}) == 32
    assert sum(name == "train" for name, _ in asked) <= 3  # the scale, and two patterns
    for point in points:
        finish(tmp_path, point)
    reads, record = [], Run.record.fget
    monkeypatch.setattr(Run, "record", property(lambda run: reads.append(run.id) or record(run)))
    assert Study(points, tmp_path, 2, Commands(None, None)).run() == []
    assert len(reads) == len(points)


def test_everything_is_each_run_once_with_all_that_is_evaluated_of_it_and_what_it_needs_first(linked_sweeps):
    sweeps = [load_sweep(linked_sweeps / f"{name}.yaml", ["seed=0,1"]) for name in ("two", "one")]
    points = plan_points(sweeps)
    # A parent; per seed the four of one, learned and child.
    assert len({p.run for p in points}) == len(points) == 1 + 2 * 6
    order = [p.run for p in points]
    assert all(order.index(need.run) < order.index(p.run) for p in points for need in p.needs)
    needed = {need.run for p in points for need in p.needs}
    seeds = [p.seed for p in points if p.run not in needed]
    assert seeds == sorted(seeds)
    shared = next(p for p in points if p.name == "a, block_size=2" or p.name == "plain")
    assert [e.name for e in shared.evaluations] == ["order", "speed", "speed"]


def test_the_time_to_go_is_the_work_left_at_the_rates_seen(linked_sweeps, tmp_path):
    points = plan_points([load_sweep(linked_sweeps / "one.yaml", ["seed=0", "tokens=1000"])])
    a, b = points[:2]
    finish(tmp_path, a)
    progress = Progress(points[1:], points, tmp_path, jobs=2)
    assert progress.seconds_left([]) is None  # how long measuring takes is not known
    progress.done("measure", a, 30.0)  # three evaluations
    finish(tmp_path, b)
    progress.done("train", b, 100.0)
    assert progress.seconds_left([]) == pytest.approx((2 * 100 + 3 * 2 * 10) / 2)
    assert progress.seconds_left([("train", points[2], 40.0)]) == pytest.approx((160 + 60) / 2)
    assert progress.line([]).startswith("[1 of 3 runs trained, 1 of 4 measured; 0 min, about 2 min to go]")
    progress.done("train", points[2], 60.0, failed=True)  # there is no record, and nothing to measure
    assert progress.left == {"train": {points[3].run: 1000}, "measure": {b.run: 2, points[3].run: 2}}
    assert progress.line([]).startswith("[1 of 3 runs trained, 1 of 4 measured, 1 FAILED; 0 min, ")


def test_before_any_job_ends_the_rate_of_training_is_that_of_the_runs_that_are_there(linked_sweeps, tmp_path):
    points = plan_points([load_sweep(linked_sweeps / "one.yaml", ["seed=0", "tokens=1000"])])
    finish(tmp_path, points[0])  # 0.2 s per token
    assert Progress(points[1:], [], tmp_path, jobs=1).seconds_left([]) == pytest.approx(3 * 1000 * 0.2)
    assert Progress(points[1:], [], tmp_path / "empty", jobs=1).seconds_left([]) is None
    points = plan_points([load_sweep(linked_sweeps / "one.yaml", ["seed=0"])])  # of examples
    finish(tmp_path / "examples", points[0]).update(budget={"examples": 50})  # 2 s
    left = sum(point.budget[1] for point in points[1:]) * 2 / 50
    assert Progress(points[1:], [], tmp_path / "examples", jobs=1).seconds_left([]) == pytest.approx(left)


def test_a_run_counts_as_finished_only_where_it_was_evaluated_as_the_others(table1, tmp_path):
    point = by_name(table1)["g"]
    assert point.state(tmp_path) == "not trained"
    run = finish(tmp_path, point)
    assert point.state(tmp_path) == FINISHED
    other = by_name(load_sweep(TABLE1, ["seed=0", "evaluation.tasks_per_family=2"]))["g"]
    assert other.run == point.run and other.state(tmp_path) == "evaluated with other settings"
    run.update(evaluation={})
    assert point.state(tmp_path) == "not evaluated"
    run.update(evaluation={"dlm": 1}, status="interrupted")
    assert point.state(tmp_path) == "interrupted"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dry-run"],
        ["no=sweep"],
        ["sweeps/nowhere.yaml"],
        [str(TABLE1), "--jobs", "0"],
        [str(TABLE1), "--threads", "0"],
    ],
)
def test_what_is_no_study_is_refused_in_a_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert exit_code(main) == 2
    said = capsys.readouterr().err
    assert "error:" in said and "Traceback" not in said


@pytest.mark.parametrize(("given", "threads"), [([], 2), (["--threads", "1"], 1)])
def test_a_job_has_its_share_of_the_cores_or_the_threads_that_are_given(given, threads, linked_sweeps, monkeypatch):
    """In training and in measuring: both are made by `commands`."""
    asked = []
    monkeypatch.setattr(sys, "argv", ["study", str(linked_sweeps / "one.yaml"), "seed=0", "--jobs", "2", *given])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("analysis.study.commands", lambda runs, threads, *_: asked.append(threads))
    monkeypatch.setattr("analysis.study.Study", lambda *_: SimpleNamespace(run=lambda: []))
    assert main() == 0 and asked == [threads]


def test_make_does_the_sweeps_that_it_is_given_and_else_all():
    plain = {"PATH": os.environ["PATH"]}
    for given, done in ((["SWEEPS=sweeps/table*.yaml"], "sweeps/table*.yaml"), ([], "sweeps/*.yaml")):
        said = subprocess.run(
            ["make", "-n", "ablation-report", *given], capture_output=True, text=True, check=True, cwd=ROOT, env=plain
        )
        assert f"analysis.study {done} --jobs" in said.stdout
        assert said.stdout.index("|| exit 2") < said.stdout.index("analysis.report"), "bad input renders no report"
