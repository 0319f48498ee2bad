"""Loggers: each takes what a run sends, and what is sent of a run, a sweep and a study."""

import ast
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from common import ROOT, config, options
from omegaconf import OmegaConf
from small_runs import small
from wandb_records import read_all

from analysis.plan.study import commands
from analysis.plan.sweep import load_sweep
from analysis.study import sweeps_of_runs
from dlm.config.loggers import loggers, logging_again, sent_config
from dlm.config.multirun import sweep_name
from dlm.evaluation.results import key_of, of_evaluation, results, send_results
from dlm.runs.identity import run_id
from dlm.runs.run import Run
from dlm.train import train


def test_of_an_absolute_path_only_the_last_part_is_sent():
    data = {"path": "/home/me/secret/corpus.jsonl", "files": ["/a/b.txt", "c.txt"], "hub": "Qwen/Qwen3-0.6B"}
    sent = sent_config({"config": {"data": data, "lr": 1e-3, "runs_dir": "/runs"}, "choices": {"data": "text"}})
    expected = {"path": "corpus.jsonl", "files": ["b.txt", "c.txt"], "hub": "Qwen/Qwen3-0.6B"}
    assert sent == {"lr": 1e-3, "data": "text", "options": {"data": expected}}


def test_the_environment_of_wandb_says_what_the_config_leaves_open(runs_dir, monkeypatch):
    def settings(*overrides):
        (logger,) = loggers(small(runs_dir, "logger=wandb", *overrides).logger, made)
        return logger.settings

    made = Run.create(small(runs_dir), {"recipe": "none"})
    assert settings("logger.wandb.tags=[mine]")["tags"] == ["recipe=none", "mine"]
    assert settings()["project"] == "dlm" and settings()["dir"] == str(made.folder) and settings()["id"] == made.id
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_DIR", str(runs_dir / "elsewhere"))
    monkeypatch.setenv("WANDB_RUN_GROUP", "their group")
    assert settings()["dir"] == str(runs_dir / "elsewhere") and settings()["group"] == "their group"
    assert settings()["project"] == "theirs" and settings("logger.wandb.project=ours")["project"] == "ours"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("HOME", str(runs_dir))
    assert settings()["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "banana")
    with pytest.raises(ValueError, match="WANDB_MODE 'banana' in the environment is unknown: choose one of online"):
        settings()


def test_a_package_that_is_not_installed_is_named_with_what_installs_it(runs_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"logger=trackio needs a package that is not there: pip install 'dlm\[track"):
        loggers(small(runs_dir, "logger=trackio").logger, Run.create(small(runs_dir), {}))


def test_a_run_whose_results_do_not_reach_a_logger_is_finished(runs_dir, monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr("dlm.train.fit_in_pieces", lambda *_: None)
    monkeypatch.setattr("dlm.train.send_results", refuse)
    cfg = small(runs_dir)
    with pytest.raises(OSError, match="no network"):
        train(cfg)
    assert train(cfg)["status"] == "skipped"


def places():
    """Every logger; MLflow takes many seconds to make its file."""
    names = [name for name in options("logger") if name != "csv"]
    return [pytest.param(name, marks=[pytest.mark.slow] if name == "mlflow" else []) for name in names]


@pytest.mark.parametrize("name", places())
@pytest.mark.trains
def test_every_logger_takes_every_call_and_goes_on_where_it_was_closed(name, trained, monkeypatch, tmp_path):
    if name == "mlflow":  # the one that the tests' environment does not bring
        pytest.importorskip(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    nodes = small(trained.folder.parent, f"logger={name}").logger
    for step in range(2):
        with logging_again(trained, nodes) as opened:
            (logger,) = opened
            logger.tokens_per_step = 10
            logger.log_metrics({"train/loss": 3.0 - step, "val/nelbo": 2.0}, step)
            logger.log_table(
                "eval/items", pd.DataFrame({"text": ["a|b", ""], "right": [True, False], "n": [1.5, None]})
            )
            logger.log_picture("drift/heatmap", np.zeros((4, 5, 3), np.uint8), step)
            logger.log_model(trained.model_folder)
            logger.log_summary({"eval/tpf2/accuracy": 0.5 + step / 4})
    losses, accuracy = READERS[name](trained, tmp_path)
    assert losses == [3.0, 2.0] and accuracy == 0.75


def from_wandb(run, folder):
    parts = read_all(run.folder)
    return [value for part in parts for _, value in part.column("train/loss")], parts[-1].summary["eval/tpf2/accuracy"]


def from_tensorboard(run, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.folder / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("tokens")] == [0, 1] and len(found.Images("drift/heatmap")) == 2
    assert "eval/items/text_summary" in found.Tags()["tensors"]
    return [e.value for e in found.Scalars("train/loss")], found.Scalars("eval/tpf2/accuracy")[-1].value


def from_mlflow(run, folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder.parent / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("dlm").experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert found.data.params["block_size"] == "8" and found.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"eval", "drift"}
    return [metric.value for metric in history], found.data.metrics["eval/tpf2/accuracy"]


def from_trackio(run, folder):
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("dlm") == [run.id]
    assert SQLiteStorage.get_run_config("dlm", run.id)["block_size"] == 8
    history = SQLiteStorage.get_logs("dlm", run.id)
    losses = [row["train/loss"] for row in history if "train/loss" in row]
    return losses, [row["eval/tpf2/accuracy"] for row in history if "eval/tpf2/accuracy" in row][-1]


READERS = {
    "wandb": from_wandb,
    "tensorboard": from_tensorboard,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
}


@pytest.mark.trains
def test_several_loggers_get_the_same(trained, monkeypatch):
    sent = {}
    monkeypatch.setattr("dlm.logger.wandb.Wandb.log_summary", lambda self, values: sent.setdefault("wandb", values))
    monkeypatch.setattr("dlm.logger.base.Plain.log_summary", lambda self, values: sent.setdefault("csv", values))
    mine = "+logger.mine={_target_: lightning.pytorch.loggers.CSVLogger}"
    with logging_again(trained, small(trained.folder.parent, "logger=wandb", mine).logger) as opened:
        assert len(opened) == 2
        send_results(opened, trained)
    assert sent["wandb"] == sent["csv"] and sent["csv"]["val/nelbo_final"] > 0


def test_a_sweep_has_one_name_however_often_and_with_whatever_loggers_it_is_started():
    swept, overrides = ["attention", "block_size"], ["attention=ar,block", "block_size=4,8", "lr=1e-3"]
    name = sweep_name(swept, overrides)
    assert name.startswith("attention-block_size-")
    assert sweep_name(swept, [*overrides[::-1], "logger=wandb", "runs_dir=elsewhere", "retry=false"]) == name
    assert sweep_name(swept, ["attention=ar,block", "block_size=4,8", "lr=2e-3"]) != name
    assert len(sweep_name(["x" * 90], overrides)) < 64  # the longest tag that W&B takes


def test_a_setting_has_a_name_that_can_be_typed():
    assert key_of("1 token/step") == "one_token" and key_of("TPF≈2") == "tpf2" and key_of("TPF≈2.8") == "tpf2_8"
    assert key_of("threshold threshold=0.9") == "threshold_threshold_0_9"


def test_scores_on_benchmarks_are_results():
    scores = {"dlm": {"gsm8k_100": {"metrics": {"exact_match": 0.25}, "n": 40, "tpf": 2.5, "version": "1"}}}
    sent = {name: value for name, value in results({"benchmarks": scores}).items() if "benchmarks" in name}
    place = "benchmarks/dlm/gsm8k_100"
    assert sent == {f"{place}/metrics/exact_match": 0.25, f"{place}/n": 40.0, f"{place}/tpf": 2.5}


def test_a_number_that_was_not_measured_is_not_sent():
    likelihood = {"nats": 2.0}
    row = {"name": "TPF≈2", "threshold": None, "accuracy": 0.5, "families": {"add": {"accuracy": 0.25}}}
    of_model = {"likelihood": likelihood, "cloze": 0.5, "generation": [row]}
    record = {"evaluation": {"parent": of_model, "dlm": of_model, "throughput": {"parent": 9.0}}, "drift": {}}
    sent = results(record)
    assert sent["eval/tpf2/families/add"] == 0.25 and sent["eval/parent/tokens_per_second"] == 9.0
    assert "eval/tpf2/threshold" not in sent and "eval/tpf2/tokens_per_second" not in sent
    assert dict(of_evaluation(record["evaluation"]))["eval/dlm/cloze"] == 0.5


@pytest.mark.trains
def test_no_module_imports_what_only_one_logger_needs_before_it_is_used():
    for file in (ROOT / "dlm").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"wandb", "mlflow", "trackio", "tensorboard"}, file


@pytest.mark.trains
def test_a_study_logs_where_it_is_told_to_and_its_runs_stay_the_same(tmp_path):
    path = ROOT / "sweeps" / "table7_lr.yaml"
    plain, logged = (load_sweep(path, ["scale=smoke", f"logger={name}"]) for name in ("csv", "wandb"))
    assert [p.run for p in plain.points] == [p.run for p in logged.points]
    assert "wandb" in logged.points[0].config["logger"] and not plain.points[0].config["logger"]
    made = commands(tmp_path, 1, sweeps_of_runs([logged, replace(logged, name="other")])).train(logged.points[0])
    overrides = made.args[1]
    assert "runtime.sweeps=[table7_lr,other]" in overrides and overrides.count("logger=wandb") == 1
    assert not [o for o in overrides if o == "logger=csv"]


def test_the_names_of_the_sweeps_are_no_part_of_a_run():

    def id_of(*overrides):
        return run_id(OmegaConf.to_container(config(*overrides), resolve=True))

    assert id_of("runtime.sweeps=[a]", "logger=wandb") == id_of("logger=csv")
