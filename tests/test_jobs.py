"""A study at work: what is begun when and by which process, what waits, and what is left when it ends early."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
import study_jobs
from common import ROOT

from analysis.plan import slurm
from analysis.plan.progress import Progress
from analysis.plan.slurm import launcher_options, run_on_slurm, split_overrides
from analysis.plan.study import BUSY_SECONDS, Commands, Held, Study, commands
from analysis.plan.sweep import FINISHED, load_sweep
from analysis.study import plan_points
from dlm.runs.lease import NAME
from dlm.runs.run import Run

pytestmark = pytest.mark.trains


def pretend(runs_dir, failing=(), diverging=()):
    """Jobs that note what a study would have made; a run of a point in `failing` fails."""

    def train(point):
        if point.name in failing:
            return study_jobs.fail
        diverged = point.name in diverging
        return partial(study_jobs.trained, runs_dir / point.run, point.evaluated_with, diverged)

    def measure(point):
        return partial(study_jobs.measured, runs_dir / point.run, [e.file for e in point.to_measure(runs_dir)])

    return Commands(train, measure)


def begun(printed: str) -> list[tuple[str, str]]:
    """What was begun, in order: (kind, run)."""
    return re.findall(r"^(train|measure) .* run (\w+)$", printed, re.MULTILINE)


@pytest.mark.slow  # `make smoke` does it with every sweep
def test_what_is_missing_is_trained_then_measured_and_what_needs_it_waits(linked_sweeps, tmp_path, capsys):
    points = plan_points([load_sweep(linked_sweeps / f"{name}.yaml", ["seed=0"]) for name in ("two", "one")])
    assert Study(points, tmp_path, 2, pretend(tmp_path)).run() == []
    order = begun(capsys.readouterr().out)
    learned = next(p for p in points if p.name == "learned")
    (need,) = learned.needs
    assert order.index(("train", need.run)) < order.index(("measure", need.run)) < order.index(("train", learned.run))
    assert len(order) == len(set(order)) == 7 + 4
    assert Study(points, tmp_path, 2, pretend(tmp_path)).run() == []
    assert "7 of 7 runs are there, 0 to train" in (again := capsys.readouterr().out) and begun(again) == []
    measured = tmp_path / need.run / need.evaluations[0].file
    measured.unlink()
    Study(points, tmp_path, 2, pretend(tmp_path)).run()
    assert begun(capsys.readouterr().out) == [("measure", need.run)] and measured.exists()


@pytest.mark.processes
def test_a_failing_job_stops_what_needs_it_and_nothing_else(linked_sweeps, tmp_path, capsys):
    points = plan_points([load_sweep(linked_sweeps / f"{name}.yaml", ["seed=0"]) for name in ("two", "one")])
    failed = Study(points, tmp_path, 2, pretend(tmp_path, failing={"old"})).run()
    assert {p.name for p in failed} == {"old", "child"}
    printed = capsys.readouterr().out
    assert re.search(r"old \(old\), seed 7, run \w+ FAILED in \d+ s: error: bad", printed)
    assert "left out child" in printed
    assert "[5 of 7 runs trained, 4 of 4 measured, 1 FAILED; " in printed
    assert {p.name for p in points if p.state(tmp_path) != FINISHED} == {"old", "child"}


def test_a_run_that_diverged_is_not_measured_nor_trained_again_and_fails_no_study(linked_sweeps, tmp_path, capsys):
    points = plan_points([load_sweep(linked_sweeps / f"{name}.yaml", ["seed=0"]) for name in ("two", "one")])
    alone = [next(p for p in points if p.evaluations)]
    assert Study(alone, tmp_path, 1, pretend(tmp_path, diverging={alone[0].name})).run() == []
    printed = capsys.readouterr().out
    assert begun(printed) == [("train", alone[0].run)] and "diverged: nothing is measured" in printed
    assert Study(alone, tmp_path, 1, pretend(tmp_path)).run() == [] and begun(capsys.readouterr().out) == []


def test_a_run_that_another_process_works_on_is_come_back_to_and_is_not_failed(
    linked_sweeps, tmp_path, capsys, monkeypatch
):
    """Also what needs it waits: it is not left out."""
    points = plan_points([load_sweep(linked_sweeps / f"{name}.yaml", ["seed=0"]) for name in ("two", "one")])
    plain = pretend(tmp_path)
    old = next(point for point in points if point.name == "old")
    asked = []

    def train(point):
        asked.append(point.run)
        if point is not old:
            return plain.train(point)
        return partial(study_jobs.trained_the_second_time, *plain.train(point).args)

    monkeypatch.setattr(Held, "may_be_free", lambda held, runs_dir: len(asked) >= 6)  # all but it and what needs it
    assert Study(points, tmp_path, 2, Commands(train, plain.measure)).run() == []
    printed = capsys.readouterr().out
    assert asked.count(old.run) == 2 and len(asked) == len(points) + 1
    assert re.search(r"old \(old\), seed 7, run \w+ is BUSY: another process works on it", printed)
    assert "FAILED" not in printed and "left out" not in printed
    assert {point.state(tmp_path) for point in points} == {FINISHED}


def test_a_held_run_is_tried_again_when_its_lease_is_gone_or_its_holder_may_have_died(table1, tmp_path, monkeypatch):
    held = Held(table1.points[0])
    assert held.may_be_free(tmp_path)
    marker = tmp_path / held.point.run / NAME
    marker.parent.mkdir()
    marker.touch()
    assert not held.may_be_free(tmp_path)
    monkeypatch.setattr("time.monotonic", lambda: held.since + BUSY_SECONDS + 1)
    assert held.may_be_free(tmp_path)


def test_a_record_that_cannot_be_read_does_not_keep_a_study_from_its_other_runs(table1, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert Progress(table1.points, [], tmp_path, jobs=1).seconds_left([]) is None


def test_no_more_jobs_run_side_by_side_than_asked(table1, tmp_path):
    """Each job notes when it began and ended; at no begin are there more than two open."""
    Study(table1.points[:4], tmp_path, 2, Commands(lambda point: study_jobs.last_a_moment, None)).run()
    spans = [tuple(map(float, log.read_text().split())) for log in (tmp_path / ".logs").glob("*.log")]
    assert len(spans) == 4
    assert max(sum(b <= begin < e for b, e in spans) for begin, _ in spans) <= 2


DRIVER = """
import sys, analysis.plan.jobs, analysis.study as s
from analysis.plan.study import Commands
sys.path.append("tests")
import study_jobs
analysis.plan.jobs.FORKS.set_forkserver_preload([])  # these jobs need nothing
s.commands = lambda *_: Commands(lambda point: study_jobs.last, None)
sys.argv = ["study", {sweep!r}, "--runs", {runs!r}, "--jobs", "2", "tokens=4096", "seed=0"]
raise SystemExit(s.main())
"""


def begin_two_jobs(runs_dir, **options) -> subprocess.Popen:
    """A study in a process of its own whose two first jobs have begun, and last."""
    driver = DRIVER.format(sweep="sweeps/table1_attention.yaml", runs=str(runs_dir))
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options)
    wait_for(runs_dir, ["begun\n"] * 2, 60)
    return process


def wait_for(runs_dir, logs: list[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while written(runs_dir) != logs and time.monotonic() < until:
        time.sleep(0.05)


def written(runs_dir) -> list[str]:
    return [p.read_text() for p in (runs_dir / ".logs").glob("*.log")]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_study_interrupts_its_jobs_and_starts_no_other(sent, tmp_path):
    """Also by SIGTERM in the background of a shell, where SIGINT is ignored."""
    ignored = {} if sent == signal.SIGINT else {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = begin_two_jobs(tmp_path, **ignored)
    os.kill(process.pid, sent)
    assert process.wait(20) == 130 and "the same command goes on" in process.stderr.read()
    assert written(tmp_path) == ["begun\nclean\n"] * 2


@pytest.mark.slow
def test_a_study_that_is_killed_leaves_no_job_behind(tmp_path):
    process = begin_two_jobs(tmp_path)
    process.kill()
    process.wait(20)
    wait_for(tmp_path, ["begun\nclean\n"] * 2, 20)
    assert written(tmp_path) == ["begun\nclean\n"] * 2


def test_a_job_has_a_session_of_its_own_and_what_jobs_share_and_starts_processes_as_any_program(table1, tmp_path):
    Study(table1.points[:1], tmp_path, 1, Commands(lambda point: study_jobs.describe, None)).run()
    assert written(tmp_path) == ["True None True\n"]


# Counts the modules that jobs share and those that a run imports beyond them; fails where the former ask for a GPU.
SHARES = """
import sys, threading, torch, analysis.plan.jobs
def asked(*_): raise SystemExit("GPUs were asked for")
untouched = torch.cuda.is_available, torch.cuda.device_count
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = asked
for module in analysis.plan.jobs.SHARED:
    __import__(module)
assert threading.active_count() == 1  # only the thread that forks would live on in a fork
torch.cuda.is_available, torch.cuda.device_count = untouched
before = {*sys.modules}
try:
    analysis.plan.jobs.run_module("dlm.train", sys.argv[1:])
finally:
    print("imported", len(before), len({*sys.modules} - before))
"""


@pytest.mark.slow
def test_what_jobs_import_is_imported_before_they_fork_and_leaves_gpus_alone(tmp_path):
    arguments = ["scale=smoke", "logger=csv", "attention=block", f"runs_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", SHARES, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ((shared, own),) = re.findall(r"^imported (\d+) (\d+)", done.stdout, re.MULTILINE)
    assert int(own) < int(shared) / 50  # Hydra's plugins, and those of our modules that the config names
    (record,) = tmp_path.glob("*/run.json")
    assert Run(record.parent).status == "finished"


def test_measuring_jobs_share_the_cores_as_training_jobs_do(table1, tmp_path):
    point = table1.points[0]
    (tmp_path / ".logs").mkdir()
    made = commands(tmp_path, threads=3, sweeps={})
    train, measure = made.train(point), made.measure(point)
    assert "runtime.threads=3" in train.args[1] and measure.args[1][-1] == "3"


SLURM = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.cpus_per_task=3"]


def test_a_study_takes_the_launcher_of_a_sweep_by_the_same_words():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    of_launcher, others = split_overrides([*SLURM, "lr=1e-3", "hydra.launcher.mem_gb=4"])
    assert others == ["lr=1e-3"] and launcher_options([]) is None
    options = launcher_options(of_launcher)
    assert (options["partition"], options["cpus_per_task"], options["mem_gb"]) == ("gpu", 3, 4)
    assert options["max_num_timeout"] == 100 and options["timeout_min"] == 1440  # those of the preset
    with pytest.raises(ValueError, match=r"hydra/launcher=joblib: a study takes hydra/launcher=slurm or slurm_node"):
        launcher_options(["hydra/launcher=joblib"])
    with pytest.raises(ValueError, match="partitoin"):
        launcher_options(["hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"])


def test_a_run_on_a_node_of_eight_is_measured_by_one_process(table1, tmp_path):
    (tmp_path / ".logs").mkdir()
    made = commands(tmp_path, 3, {}, {"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8})
    train, measure = made.train(table1.points[0]), made.measure(table1.points[0])
    assert train.func is measure.func is run_on_slurm and train.args[2] == "dlm.train"
    assert [(w.args[0]["nodes"], w.args[0]["tasks_per_node"]) for w in (train, measure)] == [(2, 8), (1, 1)]


class FakeJob:
    """A job of submitit that has left a result, or none."""

    def __init__(self, folder, result):
        self.job_id, self.result, self.cancelled = "7", lambda: result, False
        self.paths = SimpleNamespace(result_pickle=folder / "result")
        if result is not None:
            self.paths.result_pickle.touch()

    def stdout(self):
        return "what it printed"

    def cancel(self, check):
        self.cancelled = True


def raising(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(("result", "code"), [(0, 0), (75, 75), (None, "job 7 of SLURM ended without a result")])
def test_a_job_of_slurm_ends_with_its_exit_code_and_says_what_it_printed(result, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slurm, "executor", lambda *_: SimpleNamespace(submit=lambda work: FakeJob(tmp_path, result)))
    monkeypatch.setattr(slurm, "is_queued", lambda job_id: False)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        run_on_slurm({}, tmp_path, "module", [])
    assert end.value.code == code if isinstance(code, int) else end.value.code.startswith(code)
    assert capsys.readouterr().out == "job 7 of SLURM\nwhat it printed\n"


def test_an_interrupted_study_cancels_its_jobs_of_slurm(tmp_path, monkeypatch):
    job = FakeJob(tmp_path, None)
    monkeypatch.setattr(slurm, "executor", lambda *_: SimpleNamespace(submit=lambda work: job))
    monkeypatch.setattr(slurm, "wait_for", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_on_slurm({}, tmp_path, "module", [])
    assert job.cancelled


def test_a_job_gives_its_exit_code_unless_it_was_interrupted(monkeypatch):
    for given, code in {0: 0, 75: 75, None: 0, "error: a message": 1}.items():
        monkeypatch.setattr(slurm, "run_module", raising(SystemExit(given)))
        assert slurm.Module("module", ())() == code
    monkeypatch.setattr(slurm, "run_module", raising(SystemExit(130)))
    with pytest.raises(SystemExit):  # submitit queues it again, so there is no result
        slurm.Module("module", ())()
