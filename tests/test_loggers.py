"""What a run sends to its loggers, and that each of them gets it."""

import ast
import contextlib
import io
import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import LIGHT_EVALUATION, ROOT, config, options, shorten_prose
from omegaconf import OmegaConf
from small_runs import small, train_and_interrupt
from wandb_records import read_all

from analysis.plan.sweep import load_sweep
from analysis.study import commands, sweeps_of_runs
from dlm import evaluate, measure, policy
from dlm.config.folders import CONF
from dlm.config.loggers import loggers, logging_again, sent_config
from dlm.config.multirun import sweep_name
from dlm.data.tasks import FAMILIES
from dlm.evaluation.results import key_of, of_evaluation, results, send_results
from dlm.runs.identity import run_id
from dlm.runs.run import Run
from dlm.runs.storage import write_json
from dlm.train import train
from dlm.trainer.loss_profile import BINS
from dlm.workspace.panels import named

ROWS, LENGTH = 4, 64  # of a small run
LOGGED = (
    "logger=wandb",
    "logger.wandb.model=true",
    "runtime.drift_every=2",
    "runtime.val_every=2",
    "runtime.sweeps=[table1,table2]",
)
GROUPS = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
CHOICES = dict.fromkeys(GROUPS) | {"attention": "block", "recipe": "none", "scale": "embedded", "logger": "wandb"}


@pytest.fixture(scope="module")
def run_and_log(tmp_path_factory):
    """A run of four steps that was logged offline, with its evaluation, and what it said where there is no terminal."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        shorten_prose(patch)
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr("dlm.train.choices", lambda: CHOICES)
        runs_dir = tmp_path_factory.mktemp("logged") / "runs"
        result = train(small(runs_dir, *LOGGED, *LIGHT_EVALUATION, "runtime.progress_bar=true"))
        return Run.load(result["id"], runs_dir), said.getvalue()


@pytest.fixture(scope="module")
def run(run_and_log):
    return run_and_log[0]


@pytest.fixture(scope="module")
def logged(run):
    """What it logged."""
    (found,) = read_all(run.folder)
    return found


@pytest.mark.trains
def test_the_step_of_every_metric_is_the_tokens_that_were_trained_on(logged):
    assert logged.step_metrics["*"] == "tokens" and logged.step_metrics["tokens"] == ""
    for row in logged.history:
        if "trainer/global_step" in row:
            assert row["tokens"] == (row["trainer/global_step"] + 1) * ROWS * LENGTH
    assert [tokens for tokens, _ in logged.column("train/loss")] == [256, 512, 768, 1024]
    assert [tokens for tokens, _ in logged.column("val/nelbo")] == [512, 1024]


@pytest.mark.trains
def test_a_run_sends_how_it_goes_at_every_log_step(logged):
    for name in ("train/lr", "train/tokens_per_second", "train/peak_memory_gb", "train/masked_share"):
        assert len(logged.column(name)) == 4 and all(value > 0 for _, value in logged.column(name)), name
    assert len(logged.column(f"loss_by_position/{BINS}")) == 4
    assert {name for name in logged.names if name.startswith("loss_by_level/")}


@pytest.mark.trains
def test_the_drift_is_a_table_of_layers_and_a_picture_that_grows(logged):
    from PIL import Image

    rows = logged.table("drift/layers")
    assert rows["columns"][:3] == ["layer", "kind", "mean_abs"] and {"attention", "ffn"} <= {r[1] for r in rows["data"]}
    assert [tokens for tokens, _ in logged.column("drift/ffn/relative")] == [512, 1024]
    pictures = [row["path"] for _, row in logged.column("drift/heatmap")]
    assert len(pictures) == 2 and Image.open(logged.folder / "files" / pictures[-1]).size[0] > 300


@pytest.mark.trains
def test_the_evaluation_is_in_flat_keys_and_tables_of_items_and_steps(run, logged):
    first = run.record["evaluation"]["dlm"]["generation"][1]
    for name in ("accuracy", "low", "high", "tpf", "nfe"):
        assert logged.summary[f"eval/tpf2/{name}"] == first[name]
    speed = run.record["evaluation"]["throughput"]
    assert logged.summary["eval/tpf2/tokens_per_second"] == speed["TPF≈2"]
    assert logged.summary["eval/parent/accuracy"] == run.record["evaluation"]["parent"]["generation"][0]["accuracy"]
    items = pd.DataFrame(**logged.table("eval/items"))
    assert len(items) == 3 * len(FAMILIES) and set(items["setting"]) == {"1 token/step", "TPF≈2", "TPF≈4"}
    for item in items.itertuples():
        assert item.correct == (item.output.strip() == item.answer.strip()) or item.family in ("str_eval", "list_eval")
        assert item.prompt.startswith(item.family.partition("_")[0][:3]) or item.prompt
    assert len(logged.table("eval/trace")["data"])


@pytest.mark.trains
def test_every_number_of_the_record_that_is_a_result_is_in_the_summary(run, logged):
    expected = results(run.record)
    assert expected.items() <= logged.summary.items()
    assert {"val/nelbo_final", "drift/ffn/relative", "run/train_seconds", "eval/dlm/nats"} <= expected.keys()


@pytest.mark.trains
def test_a_run_is_grouped_by_its_sweep_and_tagged_and_no_console_is_captured(run, logged):
    assert logged.run.run_id == run.id and logged.run.run_group == "table1" and logged.run.resumed is False
    assert set(logged.run.tags) == {"recipe=none", "scale=embedded", "table1", "table2"}
    assert not logged.kinds & {"output", "output_raw"}
    import wandb

    assert wandb.run is None


@pytest.mark.trains
def test_the_config_has_the_choices_and_nothing_that_cannot_change_the_weights(run, logged):
    sent = logged.config
    assert sent["attention"] == "block" and sent["auxiliary"] == "none" and sent["block_size"] == 8
    assert sent["options"]["attention"]["_target_"] == "dlm.attention.block.Block"
    text = json.dumps({key: value for key, value in sent.items() if key != "_wandb"})
    assert not {"study", "retry", "force", "runs_dir", "runtime", "logger", "callbacks"} & sent.keys()
    assert str(run.folder.parent) not in text and "/home" not in text


def test_of_an_absolute_path_only_the_last_part_is_sent():
    data = {"path": "/home/me/secret/corpus.jsonl", "files": ["/a/b.txt", "c.txt"], "hub": "Qwen/Qwen3-0.6B"}
    sent = sent_config({"config": {"data": data, "lr": 1e-3, "runs_dir": "/runs"}, "choices": {"data": "text"}})
    expected = {"path": "corpus.jsonl", "files": ["b.txt", "c.txt"], "hub": "Qwen/Qwen3-0.6B"}
    assert sent == {"lr": 1e-3, "data": "text", "options": {"data": expected}}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_the_same_wandb_run_with_the_drift_of_before(runs_dir, monkeypatch, short_prose):
    cfg = small(runs_dir, *LOGGED, "runtime.checkpoint_every=2", "trainer.accumulate=2")
    cfg.tokens = 2048
    train_and_interrupt(cfg, monkeypatch, micro_batches=6)
    result = train(cfg)
    before, after = read_all(runs_dir / result["id"])
    assert before.run.run_id == after.run.run_id == result["id"] and before.run.run_group == after.run.run_group
    assert [tokens for tokens, _ in before.column("train/loss") + after.column("train/loss")] == [512, 1024, 1536, 2048]
    (first,) = before.column("drift/heatmap")
    assert after.column("drift/heatmap")[-1][1]["sha256"] != first[1]["sha256"]


@pytest.mark.slow
def test_a_run_that_sends_nothing_opens_nothing_and_has_the_same_weights(runs_dir, run, short_prose):
    plain = Run.load(train(small(runs_dir, "runtime.drift_every=2", "runtime.val_every=2"))["id"], runs_dir)
    assert plain.id == run.id and not (plain.folder / "wandb").exists()
    of_weights = [{n: d for n, d in r.record["files"].items() if n.endswith("safetensors")} for r in (plain, run)]
    assert of_weights[0] == of_weights[1]


@pytest.mark.trains
def test_the_model_is_an_artifact_if_asked_for(run, logged, again):
    assert f"model-{run.id}" in logged.artifacts
    with logging_again(again, small(again.folder.parent, "logger=wandb").logger) as opened:
        opened[0].log_model(again.model_folder)
        opened[0].log_summary({"eval/x": 1.0})
    assert not read_all(again.folder)[-1].artifacts


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


@pytest.mark.parametrize("name", options("workspace"))
@pytest.mark.trains
def test_every_name_of_a_workspace_is_one_that_a_run_sends(name, logged):
    specification = OmegaConf.to_container(config(f"workspace={name}", name="dashboard").workspace, resolve=True)
    metrics = {*logged.names, "tokens"}
    for section in (*specification["sections"], *specification["report"]["parts"]):
        for of_run in named(section["panels"]):
            assert of_run in (metrics if "/" in of_run else logged.config), of_run


@pytest.mark.trains
def test_every_name_on_the_page_about_dashboards_is_one_that_a_run_sends(logged):
    page = (ROOT / "docs" / "how_to" / "dashboard.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_]+/.*?) \|", page, re.M)
    listed = [name for row in rows for name in re.findall(r"`([a-z_]+/[^`]+)`", row)]
    assert len(listed) > 30 and not {*listed} - logged.names


@pytest.mark.trains
def test_a_log_that_is_no_terminal_has_a_line_for_every_step_that_is_logged(run_and_log):
    said = run_and_log[1]
    lines = re.findall(r"^step (\d+) of 4, 0:\d\d:\d\d left, tok/s \d+, train/nelbo [\d.]+.*$", said, re.M)
    assert lines == ["1", "2", "3", "4"] and "\r" not in said


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


def test_no_module_imports_what_only_one_logger_needs_before_it_is_used():
    for file in (ROOT / "dlm").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"wandb", "mlflow", "trackio", "tensorboard"}, file


@pytest.fixture
def again(run, runs_dir):
    """A copy of the logged run."""
    return Run(shutil.copytree(run.folder, runs_dir / run.id))


@pytest.mark.trains
def test_later_commands_add_to_the_same_run_and_send_its_results_again(again, call, monkeypatch):
    of_run = (f"run={again.id}", f"runs_dir={again.folder.parent}")
    monkeypatch.setattr("dlm.evaluate.evaluate_again", lambda *_: None)
    monkeypatch.setattr("dlm.evaluate.show", lambda run: None)
    assert call(evaluate.main, *of_run)[0] == 0
    assert call(measure.main, *of_run, "measurement=masked", "measurement.draws=20")[0] == 0
    policy_file = again.folder / "measurements" / "policy-1.json"
    write_json(policy_file, {"fitted": {"auc": 0.75}, "held_out": {"auc": 0.5, "calibration": [{"n": 3, "kept": 0.5}]}})
    monkeypatch.setattr("dlm.policy.learn", lambda *_: policy_file)
    assert call(policy.main, *of_run)[0] == 0
    first, *others = read_all(again.folder)
    assert len(others) == 3
    for part in others:
        assert (part.run.run_id, part.run.run_group) == (again.id, "table1") and part.config == first.config
        assert results(again.record).items() <= part.summary.items()
    assert any(name.startswith("measured/masked-") for name in others[1].names)
    assert others[2].summary["measured/policy-1/held_out/auc"] == 0.5
    assert others[2].table("measured/policy-1/held_out/calibration")["data"] == [[3, 0.5]]


@pytest.mark.trains
def test_a_later_command_sends_nothing_if_it_is_told_so(again, call):
    arguments = (f"run={again.id}", f"runs_dir={again.folder.parent}", "measurement=masked", "measurement.draws=20")
    assert call(measure.main, *arguments, "logger=csv")[0] == 0
    assert len(read_all(again.folder)) == 1


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
