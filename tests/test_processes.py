"""A training of several processes (two, on the CPU, through gloo): one run, led by the first process."""

import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from common import BASE, config
from crash import Processes
from safetensors.torch import load_file
from small_runs import SMALL

from dlm.config.build import num_processes
from dlm.console import quiet
from dlm.replay import replay
from dlm.runs.lease import is_marked
from dlm.runs.run import Run
from dlm.train import train
from dlm.trainer.checkpoints import Checkpoints
from dlm.trainer.processes import cluster, is_follower

pytestmark = [pytest.mark.trains, pytest.mark.processes]

# Nothing is drawn: everything is hidden, so that what two processes train on can be had from one.
OVERRIDES = [*SMALL, "model.dtype=float64", "trainer.precision=64-true", "noise_level=full", "masking=uniform"]
OVERRIDES += ["loss=mean", "tokens=2048", "runtime.threads=1"]
TWO = "trainer.devices=2"


def start(runs_dir: Path, *arguments: str, program: tuple[str, ...] = ("-m", "dlm.train")) -> subprocess.Popen:
    """The command itself: Lightning starts the second process by it."""
    base = [f"{option}={value}" for option, value in BASE.items()]  # of `config`, with which it is compared
    command = [sys.executable, *program, *base, *OVERRIDES, *arguments, f"runs_dir={runs_dir}"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, **output)


def finished(process: subprocess.Popen, code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def runs(folder: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(folder.glob("*/run.json"))]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_folder / "model.safetensors")


def metrics(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.folder / "metrics.csv", index_col="step")


def member(rank: int, port: int, runs_dir: Path, overrides: tuple[str, ...], fault: None) -> None:
    """What one of two processes does that were started together."""
    with (runs_dir.parent / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train(config(*OVERRIDES, *overrides, f"runs_dir={runs_dir}"))


def stopped(runs_dir: Path, number: int, code: int, *arguments: str) -> Run:
    """The run of a command that a signal stopped after its first checkpoint."""
    process = start(runs_dir, *arguments, "runtime.checkpoint_every=1")
    deadline = time.monotonic() + 200
    while not [*runs_dir.glob("*/checkpoint/last.ckpt")] and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    finished(process, code)
    (run,) = runs(runs_dir)
    assert run.status == ("interrupted" if number == signal.SIGTERM else "running")
    return run


def trained_by_two(folder: Path, *overrides: str, member=member) -> Run:
    """A run that two processes trained. They are forked, which takes a third of the time of two commands."""
    processes = Processes()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [processes.start(folder / "runs", TWO, *overrides, target=partial(member, rank, port)) for rank in (0, 1)]
    for process in both:
        process.join(300)
    said = (folder / "log").read_text()
    assert [process.exitcode for process in both] == [0, 0], said
    assert said.count("a step needs at most") == 1  # one of them speaks
    (run,) = runs(folder / "runs")
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Run:
    return trained_by_two(tmp_path_factory.mktemp("two"), "runtime.pieces=2")


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Run:
    """A run of one process that sees what two see."""
    folder = tmp_path_factory.mktemp("one")
    train(config(*OVERRIDES, "trainer.accumulate=2", f"runs_dir={folder}"))
    (run,) = runs(folder)
    return run


# Lightning's strategy has no 64-true, and 32-true leaves the weights of the parent as they are.
FSDP2 = ("runtime.strategy=fsdp2", "trainer.precision=32-true")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Run:
    return trained_by_two(tmp_path_factory.mktemp("sharded"), *FSDP2)


@pytest.mark.slow  # the sharded ones are trained every day
def test_two_processes_train_what_one_does_with_twice_what_one_does_with_twice_the_micro_batches(two, one):
    assert (two.record["tokens"], two.record["steps"]) == (one.record["tokens"], one.record["steps"])
    found, expected = weights(two), weights(one)
    assert all(torch.allclose(found[name], weight, rtol=0, atol=1e-9) for name, weight in expected.items())
    assert metrics(two)["val/nelbo"].dropna().to_list() == pytest.approx(metrics(one)["val/nelbo"].dropna().to_list())


def test_two_processes_that_share_the_layers_train_what_one_does(sharded, one):
    """Tied embeddings, which are whole in both, the clipped norm, the drift and the validation included."""
    assert "no process loads all of them" in (sharded.folder.parent.parent / "log").read_text()
    found, expected = weights(sharded), weights(one)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], weight, rtol=0, atol=1e-9) for name, weight in expected.items())
    assert sharded.record["drift"] == pytest.approx(one.record["drift"])
    of_both, of_one = metrics(sharded), metrics(one)
    for name in ("val/nelbo", "train/grad_norm"):
        assert of_both[name].dropna().to_list() == pytest.approx(of_one[name].dropna().to_list())
    assert sharded.damaged() == [] and not is_marked(sharded.folder)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_with_shards_that_is_stopped_goes_on_to_the_same_end(number, code, sharded, tmp_path):
    run = stopped(tmp_path, number, code, TWO, *FSDP2)
    said = finished(start(tmp_path, TWO, *FSDP2, "runtime.strategy=ddp"), 1)
    assert "was written with sharded layers: go on with runtime.strategy=fsdp2" in said
    assert "resuming run" in finished(start(tmp_path, TWO, *FSDP2))
    assert all(torch.allclose(w, weights(run)[name], rtol=0, atol=1e-12) for name, w in weights(sharded).items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [("trainable=lora",), ("auxiliary=ar", "attention=block_token_causal")])
def test_adapters_and_further_losses_are_trained_with_shards_as_without(options, tmp_path):
    shards = trained_by_two(tmp_path / "two", *FSDP2, *options)
    train(config(*OVERRIDES, *options, "trainer.accumulate=2", f"runs_dir={tmp_path}/one"))
    (one,) = runs(tmp_path / "one")
    assert all(torch.allclose(w, weights(shards)[name], rtol=0, atol=1e-9) for name, w in weights(one).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("runtime.strategy=fsdp",), "runtime.strategy 'fsdp' is unknown: choose auto, ddp or fsdp2"),
        (
            ("runtime.strategy=fsdp2", "optimizer=muon"),
            "fsdp2: the optimizer reads whole matrices: choose optimizer=adamw",
        ),
        (
            ("runtime.strategy=fsdp2", "runtime.pieces=2"),
            "fsdp2: pieces need gradients of whole weights: set runtime.pieces=1",
        ),
    ],
)
def test_what_shards_cannot_do_is_refused_by_name(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(config(*OVERRIDES, *options, f"runs_dir={tmp_path}"))


def test_a_run_of_several_processes_is_one_whole_run(two):
    assert (
        two.status == "finished" and two.damaged() == [] and two.temporary_files() == [] and not is_marked(two.folder)
    )
    assert len(runs(two.folder.parent)) == 1 and metrics(two).index.is_unique


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_of_several_processes_that_is_stopped_goes_on_to_the_same_end(number, code, two, tmp_path):
    """Also where the first of them is killed: the other one notices, and ends."""
    run = stopped(tmp_path, number, code, TWO, "runtime.pieces=2")
    assert "resuming run" in finished(start(tmp_path, TWO, "runtime.pieces=2"))
    assert all(torch.equal(weight, weights(run)[name]) for name, weight in weights(two).items())
    pd.testing.assert_frame_equal(metrics(run), metrics(two), check_exact=True)


@pytest.mark.slow
def test_every_job_of_a_sweep_is_trained_by_several_processes(two, tmp_path):
    finished(start(tmp_path, "-m", "seed=0,1", TWO, "runtime.pieces=2"))
    first, second = sorted(runs(tmp_path), key=lambda run: run.record["config"]["seed"])
    assert first.status == second.status == "finished" and first.id == two.id
    assert all(torch.equal(weight, weights(first)[name]) for name, weight in weights(two).items())


@pytest.mark.slow
def test_a_loss_of_one_process_that_is_not_finite_stops_all_of_them_or_is_left_out_by_all(tmp_path):
    """The micro-batches of both are kept for a replay, and a sweep goes on with its next job."""
    program = (str(Path(__file__).with_name("spoiled_process.py")), "-m", "trainer.on_nonfinite=stop,skip")
    assert "failed" in finished(start(tmp_path, TWO, program=program), 1)
    found = {run.record["config"]["trainer"]["on_nonfinite"]: run for run in runs(tmp_path)}
    stopped, skipping = found["stop"], found["skip"]
    assert stopped.status == "failed" and "step 2: the loss" in stopped.record["error"]
    again = replay(stopped)
    assert again["step"] == 2 and len(again["loss"]) == 2 and again["modules"] == []  # the loss was spoiled later
    assert skipping.status == "finished" and skipping.record["skipped_steps"] == [2]
    assert all(weight.isfinite().all() for weight in weights(skipping).values())


def test_a_process_that_follows_leaves_an_error_to_the_first_but_says_where_it_ran_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    cfg = config(*OVERRIDES, TWO, f"runs_dir={tmp_path}")

    def meets(error):
        def fit(*_):
            raise error

        monkeypatch.setattr("dlm.train.fit", fit)

    meets(ValueError("all of them"))
    assert train(cfg)["status"] == "followed" and runs(tmp_path)[0].status == "new"
    meets(torch.OutOfMemoryError("only here"))
    with pytest.raises(ValueError, match=r"only here\): give the same command with runtime.pieces=2"):
        train(cfg)
    meets(RuntimeError("only here"))
    with pytest.raises(RuntimeError):
        train(cfg)


def test_each_process_draws_its_own_and_goes_on_with_its_own_random_state():
    def drawn(rank, checkpoint=None):
        torch.manual_seed(0)
        watch = Checkpoints(Path("last.ckpt"), 1, 1, None, None)
        if checkpoint:
            watch.load_state_dict(checkpoint)
        watch.on_train_start(SimpleNamespace(global_rank=rank, global_step=0), None)
        return torch.rand(3)

    assert not torch.equal(drawn(0), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    states = [{"cpu": torch.Generator().manual_seed(seed).get_state(), "cuda": []} for seed in (5, 6)]
    checkpoint = {"random": states[0], "random_of_others": states[1:]}
    for rank, seed in ((0, 5), (1, 6)):
        assert torch.equal(drawn(rank, checkpoint), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    ("variables", "devices", "follows"),
    [
        ({}, 2, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, 2, False),
        ({"LOCAL_RANK": "1"}, 2, True),
        ({"NODE_RANK": "1"}, 2, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, 8, True),
        ({"SLURM_PROCID": "3"}, 1, False),  # a task of a job array's sweep, for itself
    ],
)
def test_a_process_follows_where_it_is_not_the_first_of_its_training(variables, devices, follows, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cfg = config()
    cfg.trainer.devices = devices
    assert is_follower(num_processes(cfg)) is follows


@pytest.mark.parametrize(("name", "value"), [("devices", "auto"), ("devices", -1), ("num_nodes", 0)])
def test_a_number_of_processes_that_is_none_is_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"trainer.{name} '?{value}'? must be a whole number of at least 1"):
        train(config(f"trainer.{name}={value}", f"runs_dir={tmp_path}"))
    assert runs(tmp_path) == []


def test_slurm_is_asked_not_to_requeue_and_a_mere_srun_on_the_path_is_not_spoken_of(monkeypatch, tmp_path):
    srun = tmp_path / "srun"
    srun.touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quiet()
        assert cluster() == []
    assert not said
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "job")
    (environment,) = cluster()
    assert environment.auto_requeue is False
