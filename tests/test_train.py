"""Training: every option of every group trains, a resumed run is the uninterrupted one, bad input costs nothing."""

import json
import math
import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import test_golden_losses
import torch
from common import LIGHT_EVALUATION, config, everyday, one_in, options, text_options
from corpora import text_file
from hydra.utils import get_method
from safetensors.torch import load_file
from small_runs import metrics, small, train_and_interrupt, weights
from transformers.modeling_layers import GradientCheckpointingLayer

from analysis.site import design_space
from dlm.conversion.module import Conversion
from dlm.evaluation import suite
from dlm.evaluation.summary import report
from dlm.runs.run import Run, headline
from dlm.train import train

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]


TRAINED = (*(group for group in design_space.GROUPS if group != "decoding"), "optimizer", "trainer", "logger")


TRAINED += ("data", "recipe", "pretrain")


# What an option needs beside itself.
NEEDS = {
    ("attention", "ar"): ["token_shift=true"],
    ("auxiliary", "ar"): ["attention=block_token_causal"],
    ("auxiliary", "consistency"): ["masking=uniform", "masking.views=2", "masking.complementary=false"],
    ("trainer", "gpu"): ["trainer.accelerator=cpu"],
    ("pretrain", "embedded"): ["data.batch_size=4", "tokens=1024"],
    ("pretrain", "long"): ["data.length=256", "data.batch_size=1", "tokens=1024"],
    ("data", "long"): ["data.length=256", "data.batch_size=1", "tokens=1024"],
}


def chat_file(tmp_path):
    file = tmp_path / "chat.jsonl"
    turns = [{"prompt": f"What is {i} + 1?", "completion": f"It is {i + 1}."} for i in range(60)]
    file.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return file


# What the options need whose data are the user's own.
EXTERNAL = {
    "text": lambda folder: [f"data.path={text_file(folder)}"],
    "chat": lambda folder: [f"data.path={chat_file(folder)}", "data.template=plain"],
    "mixed": lambda folder: [
        f"data.sources={{a: {{path: {text_file(folder)}, weight: 1}}, "
        f"b: {{kind: chat, path: {chat_file(folder)}, weight: 1, template: plain}}}}"
    ],
}


# The first option of every group; of those that make a loss, test_golden_losses.py takes every option's first step.
NUMBER = {group: int(group not in test_golden_losses.GROUPS) for group in TRAINED}


@pytest.mark.parametrize(
    ("group", "option"), [case for g in TRAINED for case in everyday([(g, o) for o in text_options(g)], NUMBER[g])]
)
def test_every_option_of_every_group_trains(group, option, runs_dir, tmp_path):
    needs = NEEDS.get((group, option), [])
    if (group, option) == ("logger", "mlflow"):
        pytest.importorskip("mlflow")
    if group == "data" and option in EXTERNAL:
        needs = EXTERNAL[option](tmp_path)
    result = train(small(runs_dir, f"{group}={option}", *needs, "evaluation.tasks_per_family=0"))
    record = result["record"]
    assert record["status"] == "finished" and record["steps"] == 4 and record["tokens"] == 1024
    assert math.isfinite(record["train"]["train/loss"]) and math.isfinite(record["train"]["val/nelbo"])
    assert set(metrics(runs_dir, result)["step"]) >= {0, 1, 2, 3}
    assert record["drift"]["attention/relative"] > 0
    layout = load_file(Run.load(result["id"], runs_dir).model_folder / "model.safetensors").keys()
    assert layout == load_file("dlm/assets/tiny/model.safetensors").keys()
    assert not (runs_dir / result["id"] / "checkpoint").exists()


@pytest.mark.parametrize("option", one_in(3, options("model")))
def test_every_model_yaml_names_arguments_that_its_loader_takes(option):
    node = dict(config(f"model={option}").model)
    loader = get_method(node.pop("_target_"))
    code = loader.__code__
    takes_any = code.co_flags & 0x08
    assert takes_any or set(node) <= set(code.co_varnames[: code.co_argcount])


@pytest.mark.parametrize("option", everyday(options("evaluation")))
def test_every_evaluation_yaml_evaluates(option, runs_dir):
    skips = small(runs_dir, f"evaluation={option}").evaluation.get("skip", False)
    light = () if skips else LIGHT_EVALUATION[1:]
    result = train(small(runs_dir, f"evaluation={option}", *light))
    run = Run.load(result["id"], runs_dir)
    if skips:
        assert run.record["evaluation"] == {} and report(run) == []
        return
    for model, settings in (("parent", 1), ("dlm", 2)):
        found = run.record["evaluation"][model]
        assert len(found["generation"]) >= settings
        assert found["generation"][0]["n"] == 9 and found["likelihood"]["nats"] > 0
    assert run.record["evaluation"]["parent"]["generation"][0]["tpf"] == 1.0
    assert len(pd.read_csv(run.folder / "items.csv")) == 9 * len(run.record["evaluation"]["dlm"]["generation"])
    assert json.loads((run.folder / "trace.json").read_text())[0]["n"] > 0
    assert [table.row_count > 0 for table in report(run)] == [True] * 4


@pytest.mark.parametrize(
    ("trainable", "checkpoint_every"),
    everyday(sorted(((t, e) for t in text_options("trainable") for e in (1, 1000)), key=lambda c: c != ("full", 1))),
)
def test_an_interrupted_run_resumes_to_the_same_weights_and_metrics(trainable, checkpoint_every, runs_dir, monkeypatch):
    overrides = (f"trainable={trainable}", f"runtime.checkpoint_every={checkpoint_every}")
    overrides += ("masking=uniform", "masking.count=bernoulli", "trainer.accumulate=2", "tokens=2048")
    straight = train(small(runs_dir / "straight", *overrides))
    train_and_interrupt(small(runs_dir, *overrides), monkeypatch)
    broken = Run.load(straight["id"], runs_dir)
    assert broken.status == "interrupted" and not broken.model_folder.exists()
    assert broken.checkpoint.exists() == (checkpoint_every == 1)

    resumed = train(small(runs_dir, *overrides))
    assert resumed["id"] == straight["id"] and resumed["status"] == "finished"
    expected, found = weights(runs_dir / "straight", straight), weights(runs_dir, resumed)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    pd.testing.assert_frame_equal(
        metrics(runs_dir / "straight", straight), metrics(runs_dir, resumed), check_exact=True
    )
    assert resumed["record"]["drift"] == straight["record"]["drift"]


@pytest.mark.parametrize(
    "extra", everyday([((),), (("trainer.precision=bf16-mixed", "trainable=lora", "trainable.dropout=0.5"),)])
)
def test_the_result_is_validated_whenever_the_last_scheduled_validation_was(extra, runs_dir):
    """And neither its weights nor its metrics differ from those of a run whose schedule ends with a validation."""
    at_end, before = (train(small(runs_dir / str(n), f"runtime.val_every={n}", *extra)) for n in (1, 3))
    rows = metrics(runs_dir / "1", at_end).set_index("step")
    assert before["record"]["train"]["val/nelbo"] == rows["val/nelbo"][2]
    assert before["record"]["train"]["val/nelbo_final"] == rows["val/nelbo"][3] != rows["val/nelbo"][2]
    assert at_end["record"]["train"]["val/nelbo_final"] == at_end["record"]["train"]["val/nelbo"]
    assert headline(before["record"])["val NELBO"] == rows["val/nelbo"][3]
    kept = metrics(runs_dir / "3", before).set_index("step")
    assert kept["val/nelbo"].dropna().index.to_list() == [2]
    of_training = [column for column in rows if not column.startswith("val/")]
    pd.testing.assert_frame_equal(kept[of_training], rows[of_training], check_exact=True)
    expected, found = weights(runs_dir / "1", at_end), weights(runs_dir / "3", before)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.slow  # every test of a run that goes on needs it
def test_the_same_config_and_seed_give_the_same_numbers_and_another_seed_does_not(trained, runs_dir):
    again, other = train(small(runs_dir / "b")), train(small(runs_dir / "b", "seed=1"))
    a, b, c = (weights(*run) for run in ((runs_dir, again), (runs_dir / "b", again), (runs_dir / "b", other)))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("precision", everyday(["bf16-true", "bf16-mixed", "64-true"]))
def test_every_precision_trains_to_about_the_same(precision, small_run, runs_dir):
    """From the very parent: each self-check passes, drift zero among them."""
    found = train(small(runs_dir, f"trainer.precision={precision}"))["record"]["train"]["val/nelbo_final"]
    assert found != small_run.record["train"]["val/nelbo_final"]
    close = 1e-4 if precision == "64-true" else 0.03
    assert found == pytest.approx(small_run.record["train"]["val/nelbo_final"], rel=close)


def test_a_finished_run_is_not_trained_again_unless_forced(trained, runs_dir):
    file = trained.model_folder / "model.safetensors"
    before = file.stat().st_mtime_ns
    assert train(small(runs_dir))["status"] == "skipped"
    assert file.stat().st_mtime_ns == before
    assert train(small(runs_dir, "force=true"))["status"] == "finished"
    assert file.stat().st_mtime_ns > before


def test_a_finished_run_that_is_asked_for_with_another_evaluation_is_only_evaluated(trained, runs_dir):
    """Also where it was moved: what is kept of its parent stayed behind."""
    file = trained.model_folder / "model.safetensors"
    before = file.stat().st_mtime_ns
    again = train(small(runs_dir, *LIGHT_EVALUATION))
    assert again["status"] == "skipped" and again["record"]["evaluation"]["dlm"]["generation"]
    assert file.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_decoding_that_is_asked_for_is_one_more_row_and_measured_once(runs_dir, monkeypatch):
    usual = train(small(runs_dir, *LIGHT_EVALUATION))
    run = Run.load(usual["id"], runs_dir)
    before, rows = run.record["evaluation"], {"1 token/step", "TPF≈2", "TPF≈4"}
    assert {row["name"] for row in before["dlm"]["generation"]} == rows
    weights = (run.model_folder / "model.safetensors").stat().st_mtime_ns
    for decoding in ("fixed", "soft"):
        again = train(small(runs_dir, *LIGHT_EVALUATION, f"decoding={decoding}"))
        assert (again["id"], again["status"]) == (run.id, "skipped")
    after = run.record["evaluation"]
    *others, fixed, soft = after["dlm"]["generation"]
    assert others == before["dlm"]["generation"] and after["parent"] == before["parent"]
    assert fixed["name"].startswith("fixed tokens_per_step=1") and fixed["decoding"]["tokens_per_step"] == 1
    assert soft["decoding"]["_target_"] == "dlm.decoding.soft.Soft" and soft["name"] in after["throughput"]
    assert fixed["accuracy"] == others[0]["accuracy"] and fixed["nfe"] == others[0]["nfe"]  # the same by another name
    items = pd.read_csv(run.folder / "items.csv")
    assert items.groupby("setting").size().to_dict() == dict.fromkeys([*rows, fixed["name"], soft["name"]], 9)
    assert (run.model_folder / "model.safetensors").stat().st_mtime_ns == weights and not run.damaged()
    assert report(run)[0].row_count == 1 + 5

    monkeypatch.setattr(suite, "run_tasks", lambda *_: pytest.fail("measured again"))
    for overrides in ((), ("decoding=fixed",), ("decoding=soft",)):
        assert train(small(runs_dir, *LIGHT_EVALUATION, *overrides))["status"] == "skipped"


def test_a_new_run_is_evaluated_under_the_decoding_that_is_asked_for_too(runs_dir):
    overrides = (*LIGHT_EVALUATION, "evaluation.tpf_targets=[]", "+decoding.threshold=0.3")
    found = train(small(runs_dir, *overrides))["record"]["evaluation"]["dlm"]["generation"]
    assert [row.get("decoding", {}).get("threshold") for row in found] == [None, 0.3]


def test_a_corrupt_checkpoint_is_named_and_nothing_is_lost(trained, runs_dir):
    run = Run.create(small(runs_dir, "seed=3"), {})
    run.checkpoint.parent.mkdir()
    run.checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged .*: delete it to train this run from the start"):
        train(small(runs_dir, "seed=3"))
    assert run.checkpoint.exists() and run.status == "failed"
    assert trained.status == "finished"


def test_a_runs_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"runs_dir .* cannot be written"):
        train(small(tmp_path / "file" / "runs"))


def test_a_disk_that_is_too_small_is_named_before_training(runs_dir, monkeypatch):
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ValueError, match=r"has 0.001 GB free, but this run needs about 0.04 GB"):
        train(small(runs_dir))


def test_a_full_disk_leaves_earlier_runs_and_no_half_written_model(trained, runs_dir, monkeypatch):
    from transformers import PreTrainedModel

    def full(self, folder, **_):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full)
        with pytest.raises(ValueError, match="No space left on device"):
            train(small(runs_dir, "seed=9"))
    assert trained.status == "finished"
    assert [p.name for p in runs_dir.glob("*/model")] == ["model"]
    assert train(small(runs_dir, "seed=9"))["status"] == "finished"


@pytest.mark.slow
def test_on_a_cpu_layers_are_compiled_for_all_shapes_and_the_run_is_the_same(runs_dir, monkeypatch):
    """All but the last; here by a compiler that compiles nothing."""
    compiled, which = [], shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"trainer.compile=true needs a C\+\+ compiler"):
        train(small(runs_dir, "trainer.compile=true"))
    monkeypatch.setattr(shutil, "which", lambda name: which("true"))
    monkeypatch.setattr(GradientCheckpointingLayer, "compile", lambda layer, **how: compiled.append(how))
    first = train(small(runs_dir, "trainer.compile=true"))
    assert compiled == [{"dynamic": True}] * 3
    assert train(small(runs_dir))["status"] == "skipped" and first["status"] == "finished"
