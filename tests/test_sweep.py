"""Sweeps from the command line: what is finished is skipped, one failing job does not stop the others."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import CONF, ROOT, options
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from rich.console import Console

from dlm.config.multirun import SWEEP, SweepCallback, claim_folder, objective_of, summary_table

pytestmark = pytest.mark.trains

SMALL = [
    "tokens=512",
    "data.length=64",
    "data.batch_size=4",
    "data.val_rows=4",
    "data.mixture={tasks: 1.0}",
    "evaluation=none",
    "logger=csv",
    "runtime.progress_bar=false",
]


def sweep(runs_dir, *overrides):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "dlm.train", "-m", *SMALL, f"runs_dir={runs_dir}", *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


def records(runs_dir) -> list[dict]:
    return [json.loads(path.read_text()) for path in runs_dir.glob("*/run.json")]


@pytest.mark.slow
def test_a_failing_job_does_not_stop_the_others_and_a_rerun_trains_only_what_is_missing(tmp_path):
    first = sweep(tmp_path, "block_size=7,8", "attention=bidir,block")
    assert first.returncode == 1
    assert "sweep of 4 jobs over block_size, attention" in first.stdout
    assert "[job 1 of 4] block_size=7 attention=bidir" in first.stdout
    assert first.stdout.count("failed in") == 2 and first.stdout.count("finished in") == 2
    assert "block_size 7 must divide data.length 64" in first.stdout
    found = records(tmp_path)
    assert sorted(r["status"] for r in found) == ["failed", "failed", "finished", "finished"]
    assert all("block_size 7" in r["error"] for r in found if r["status"] == "failed")

    again = sweep(tmp_path, "block_size=8,16", "attention=block")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("skipped in") == 1 and again.stdout.count("finished in") == 1
    assert "2 jobs" in again.stdout and "NELBO" in again.stdout


def test_sweeps_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={tmp_path}/now"], return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, True)  # as a sweep has it
    assert [claim_folder(cfg.copy()).name for _ in range(3)] == ["now", "now_2", "now_3"]
    assert claim_folder(cfg) == tmp_path / "now_4" == Path(cfg.hydra.sweep.dir)
    (override,) = OverridesParser.create().parse_overrides([cfg.hydra.overrides.hydra[-1]])
    assert (override.key_or_group, override.value()) == ("hydra.sweep.dir", str(tmp_path / "now_4"))


def test_what_a_job_returns_does_not_keep_its_config_and_record_until_the_sweep_ends(tmp_path, monkeypatch):
    """Of 10,000 jobs that would be gigabytes."""
    monkeypatch.setenv(SWEEP, json.dumps({"jobs": 1, "swept": ["seed"]}))
    overrides = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={tmp_path}", "hydra.job.num=0"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", overrides, return_hydra_config=True)
    returned = JobReturn(cfg=cfg, hydra_cfg=cfg)
    returned.status, returned.return_value = JobStatus.COMPLETED, {"id": "a", "status": "finished", "record": {}}
    callback = SweepCallback()
    callback.on_job_start(cfg)
    callback.on_job_end(cfg, returned)
    assert returned.cfg is returned.hydra_cfg is returned.return_value is None
    assert json.loads((tmp_path / "0.json").read_text())["status"] == "finished"
    record = {"train": {cfg.objective: 1.5}}
    returned = JobReturn(cfg=cfg, hydra_cfg=cfg)
    returned.status, returned.return_value = JobStatus.COMPLETED, {"id": "a", "status": "finished", "record": record}
    callback.on_job_end(cfg, returned)
    assert returned.return_value == 1.5  # which a sweeper that searches reads


@pytest.mark.slow
def test_sweeps_that_begin_in_the_same_second_keep_their_jobs_apart(tmp_path):
    """The clock of the folder's name is stopped by naming it."""
    folder = tmp_path / "folder of [sweeps]" / "now"
    for sizes in ("7,9", "7"):  # they fail at once
        done = sweep(tmp_path, f"block_size={sizes}", f"hydra.sweep.dir='{folder}'")
        assert f"{len(sizes.split(','))} jobs" in done.stdout
    found = {path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("*.json")}
    assert found == {"now/0.json", "now/1.json", "now_2/0.json"}


@pytest.mark.slow
def test_the_joblib_launcher_runs_jobs_side_by_side_with_the_same_summary(tmp_path):
    done = sweep(tmp_path, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert len([r for r in records(tmp_path) if r["status"] == "finished"]) == 2
    assert "2 jobs" in done.stdout and done.stdout.count("finished") >= 2


def test_all_recipes_are_one_glob_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(SWEEP, "")
    monkeypatch.setattr(SweepCallback, "folder", None)
    given = {"sweep": {"dir": f"{tmp_path}/now"}, "overrides": {"task": ["recipe=glob(*)", "seed=0,1", "lr=1e-3"]}}
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        SweepCallback().on_multirun_start(OmegaConf.create({"hydra": given}))
    jobs = 2 * len(options("recipe"))
    said = json.loads(os.environ[SWEEP])
    assert (said["jobs"], said["swept"]) == (jobs, ["recipe", "seed"]) and said["name"].startswith("recipe-seed-")
    assert capsys.readouterr().out == f"sweep of {jobs} jobs over recipe, seed\n"


def test_the_summary_of_a_sweep_fits_eighty_columns_and_cuts_no_number():
    setting = {"accuracy, 1 token/step": 0.634, "TPF, 1 token/step": 1, "accuracy, TPF≈2": 0.6, "TPF, TPF≈2": 2}
    line = {
        "job": "attention=bidir block_size=128 auxiliary=[ar]",
        "id": "0123456789ab",
        "status": "finished",
    }
    table = summary_table([line | {"metrics": {"val NELBO": 12.345} | setting | {"drift ffn": 0.054}}])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert all(w in text for w in (*line["job"].split(), "0123456789ab", "12.345", "63.4%", "TPF 2.00", "0.054"))


def test_a_sweeper_that_chooses_the_values_says_how_many_jobs_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(SWEEP, "")
    monkeypatch.setattr(SweepCallback, "folder", None)
    task = ["lr=tag(log,interval(1e-4,1e-2))", "block_size=choice(4,8)", "seed=1"]
    given = {"sweep": {"dir": f"{tmp_path}/now"}, "overrides": {"task": task}}
    given |= {"sweeper": {"n_trials": 7, "params": {"masking.half_life": "interval(0.05,0.25)"}}}
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        SweepCallback().on_multirun_start(OmegaConf.create({"hydra": given}))
    said = json.loads(os.environ[SWEEP])
    assert (said["jobs"], said["swept"]) == (7, ["lr", "block_size", "masking.half_life"])
    assert said["name"].startswith("lr-block_size-masking.half_life-")
    assert capsys.readouterr().out == "sweep of 7 jobs over lr, block_size, masking.half_life\n"


def test_the_objective_of_a_search_is_a_metric_of_the_run_by_name():
    setting = {"name": "1 token/step", "accuracy": 0.5, "tpf": 1.0}
    record = {"train": {"val/nelbo": 1.5, "tokens": 9}, "evaluation": {"dlm": {"generation": [setting]}}}
    names = {"val/nelbo": 1.5, "accuracy": 0.5, "accuracy, 1 token/step": 0.5, "val NELBO": 1.5}
    assert {name: objective_of(record, name) for name in names} == names
    assert objective_of(record, None) is None and objective_of({}, "val/nelbo") is None
    with pytest.raises(ValueError, match=r"objective 'val/nebo' is no metric of a run: choose one of \[.*'accuracy', "):
        objective_of(record, "val/nebo")


@pytest.mark.slow
def test_optuna_searches_for_the_lowest_objective(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra [search]")
    chosen = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    done = sweep(tmp_path, *chosen, "lr=tag(log,interval(1e-4,1e-2))", "objective=val/nelbo")
    assert done.returncode == 0, done.stderr
    losses = {r["config"]["lr"]: r["train"]["val/nelbo"] for r in records(tmp_path)}
    best = min(losses, key=losses.get)
    assert len(losses) == 3 and f"best: name optuna, best_params {{'lr': {best}}}" in done.stdout
