"""What `dlm.doctor` finds is what a training would meet."""

import re

import pytest
from common import config

from dlm import doctor
from dlm.doctor import duration, findings

SMALL = ["tokens=2048", "data.length=64", "data.batch_size=2", "data.val_rows=2", "evaluation=none", "logger=csv"]


def problems(*overrides):
    return [(f.subject, f.text) for f in findings(config(*SMALL, *overrides)) if f.kind == "problem"]


@pytest.mark.trains
def test_a_run_that_can_be_trained_has_no_problem_and_all_is_said(tmp_path):
    found = [*findings(config(*SMALL, f"runs_dir={tmp_path}/runs"))]
    said = {finding.subject: finding.text for finding in found}
    assert all(finding.kind in ("good", "note") for finding in found)
    subjects = {
        "versions",
        "machine",
        "device",
        "model",
        "tokenizer",
        "positions",
        "data",
        "budget",
        "disk",
        "memory",
        "speed",
    }
    assert subjects <= set(said)
    assert said["budget"].startswith("16 optimizer steps: 2,048 tokens, ")
    assert "mask '<mask>'" in said["tokenizer"] and said["positions"].startswith("rows of 64 tokens")
    assert "a step needs at most about" in said["memory"] and "tokens/s, about" in said["speed"]
    assert not (tmp_path / "runs").exists()  # it writes nothing


@pytest.mark.more
@pytest.mark.parametrize(
    ("overrides", "subject", "message"),
    [
        (["model.path=/nowhere"], "run", "^model.path '/nowhere' does not exist"),
        (["data=text", "data.path=/nowhere.txt"], "run", "/nowhere.txt"),
        (["block_size=7"], "run", "block_size 7 must divide data.length 64"),
        (["+nonsense=1"], "run", "^nonsense is no option"),
        (["runtime.memory_gb=0.0001"], "memory", "does not fit"),
        (["trainer.accelerator=gpu"], "device", "sees no GPU: choose trainer=cpu"),
    ],
)
def test_what_would_stop_a_training_is_a_problem(overrides, subject, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "seconds_of_micro_batch", lambda *_: 1.0)
    found = [text for name, text in problems(*overrides) if name == subject]
    assert len(found) == 1
    assert re.search(message, found[0]), found[0]


def test_what_the_data_hold_is_said_as_a_training_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "seconds_of_micro_batch", lambda *_: 1.0)
    monkeypatch.setenv("DLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.txt").write_text("\n\n".join(f"text {n} of some words" for n in range(40)))
    found = findings(config(*SMALL, "data=text", f"data.path={tmp_path}/some.txt", "data.held_out=tail"))
    said = [finding.text for finding in found if finding.subject == "data"]
    assert len(said) == 2 and re.match(r"text: 38 documents, [\d,]+ tokens \(2 documents held out\); 100%", said[1])


@pytest.mark.more
def test_a_full_disk_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "seconds_of_micro_batch", lambda *_: 1.0)
    monkeypatch.setattr(doctor, "space_of", lambda *_: 10**18)
    assert [subject for subject, _ in problems()] == ["disk"]


def test_a_time_is_said_in_words():
    assert [duration(s) for s in (12, 60, 3599, 7500)] == ["12 s", "1 min", "1 h 0 min", "2 h 5 min"]


@pytest.mark.trains
def test_a_step_of_a_parent_that_reads_images_is_planned():
    findings = [*doctor.planned(config("model=tiny_vlm", "data=scenes", "recipe=none"))]
    assert findings and all(finding.kind == "good" for finding in findings)


@pytest.mark.slow
def test_a_step_of_eight_billion_parameters_is_planned_without_their_weights(monkeypatch, capsys):
    """On eight GPUs of 80 GB that this machine does not have: with shards it fits, without it does not."""
    shape = ["model=random_8b", "model.dtype=float32", "trainer=gpu", "trainer.devices=8", "runtime.memory_gb=80"]
    cfg = config("data.length=4096", "data.batch_size=1", *shape)
    cfg.runtime.strategy = "fsdp2"
    model, memory = doctor.planned(cfg)
    assert model.text.startswith("Qwen3ForCausalLM of 8,190,735,360 parameters") and memory.kind == "good"
    assert "bf16-mixed on each of 8 devices, sharded layers: a step needs at most about" in memory.text
    cfg.runtime.strategy = "ddp"
    *_, memory = doctor.planned(cfg)
    assert memory.kind == "problem" and "whole weights: data.batch_size 1 does not fit" in memory.text
    cfg = config("data.length=4096", "data.batch_size=1", *shape, "trainable=qlora")
    model, memory = doctor.planned(cfg)
    # 6,945,767,424 entries in 252 matrices of four bits, 43,646,976 of adapters, and embedding and head in float32
    assert "of 8,234,382,336 parameters, 43,646,976 trained" in model.text and memory.kind == "good"
    seen = []
    monkeypatch.setattr(doctor, "planned", lambda cfg: seen.append(cfg) or [])
    monkeypatch.setattr("sys.argv", ["doctor", "--plan", *SMALL])
    doctor.main()
    assert len(seen) == 1 and "plan" not in seen[0]
