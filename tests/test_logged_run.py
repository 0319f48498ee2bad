"""What a run that is trained sends to its logger, by what W&B wrote of it."""

import contextlib
import io
import json
import re
import shutil

import pandas as pd
import pytest
from common import LIGHT_EVALUATION, ROOT, config, options, shorten_prose
from omegaconf import OmegaConf
from small_runs import small, train_and_interrupt
from wandb_records import read_all

from dlm import evaluate, measure, policy
from dlm.config.folders import CONF
from dlm.config.loggers import logging_again
from dlm.data.tasks import FAMILIES
from dlm.evaluation.results import results
from dlm.runs.run import Run
from dlm.runs.storage import write_json
from dlm.train import train
from dlm.trainer.loss_profile import BINS
from dlm.workspace.panels import named

OF_A_STEP = 4 * 64  # tokens


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
            assert row["tokens"] == (row["trainer/global_step"] + 1) * OF_A_STEP
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
    assert len(pictures) == 2 and Image.open(pictures[-1]).size[0] > 300


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
