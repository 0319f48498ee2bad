"""Batches that other processes prepare are those that the training would prepare itself, bit for bit."""

import io
import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
from dataclasses import fields, is_dataclass
from types import SimpleNamespace

import pytest
import torch
from common import ROOT, config
from crash import AtCall, Processes, outcome
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision
from torch import Tensor, nn
from torch.utils.data import Dataset

from dlm.config.build import build
from dlm.conversion.module import Conversion
from dlm.conversion.preparation import Ahead, Parcel
from dlm.data.loading import MicroBatches, Remaining, num_workers, training_loader
from dlm.data.packing import collate

SMALL = ["data.length=64", "data.batch_size=4", "tokens=1024", "block_size=8"]
SCHEDULE = "schedule={masking.t_max:{0:0.2,1:1.0},auxiliary.ar.weight:{0:0,1:1}}"
CASES = {
    "plain": [],
    "schedule": ["auxiliary=ar", "attention=block_causal", "token_shift=true", SCHEDULE],
    "block_schedule": ["block_schedule=random", "block_schedule.sizes=[2,8]"],
    "teacher": ["auxiliary=[distill,confidence]", "token_shift=true"],
    "views": ["masking=uniform", "masking.views=2", "masking.complementary=false", "auxiliary=consistency"],
    "learned": ["masking=learned", f"masking.runs_dir={ROOT / 'tests' / 'data'}", "masking.trace=trace.json"],
    "kernel": ["kernel=mixture", "noise_level=monotone", "loss=cart"],
}
OF = 4  # micro-batches


class WithoutWeights(pickle.Pickler):
    """Refuses to send a network to another process."""

    def reducer_override(self, value):
        if isinstance(value, nn.Module):
            raise pickle.PicklingError(f"weights of {type(value).__name__} are sent")
        return NotImplemented


def sent(value):
    """What another process gets."""
    file = io.BytesIO()
    WithoutWeights(file).dump(value)
    return pickle.loads(file.getvalue())


def tensors(value) -> list[Tensor]:
    """All tensors in a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = [getattr(value, f.name) for f in fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, list) else []


def ready(*overrides: str):
    """An experiment as it is when training starts."""
    experiment = build(config(*SMALL, *overrides))
    experiment.conversion.pieces = 2
    return experiment


@pytest.mark.parametrize("case", CASES)
def test_another_process_prepares_without_weights_what_this_one_does(case, short_prose, monkeypatch):
    experiment = ready(*CASES[case])
    conversion, rows = experiment.conversion, experiment.data.train_rows
    trainer = SimpleNamespace(training=True, max_steps=2, accumulate_grad_batches=2)
    monkeypatch.setattr(Conversion, "trainer", trainer)
    monkeypatch.setattr(Conversion, "global_rank", 1)
    theirs = sent(MicroBatches(rows, 4, 1, 2, conversion.ahead))
    ours = MicroBatches(rows, 4, 1, 2)
    made = [theirs[number].pieces for number in (1, 0)][::-1]  # whichever comes first
    for number, pieces in enumerate(made):
        expected = conversion.on_before_batch_transfer(ours[number], 0)
        assert len(pieces) == 2 and len(tensors(pieces)) == len(tensors(expected)) > 20
        assert all(torch.equal(a, b) for a, b in zip(tensors(pieces), tensors(expected), strict=True))
        assert [p.inputs.pattern for p in pieces] == [p.inputs.pattern for p in expected]


def test_what_was_prepared_ahead_is_taken_as_it_is_and_the_step_has_its_scheduled_numbers(short_prose, monkeypatch):
    conversion = ready(*CASES["schedule"]).conversion
    trainer = SimpleNamespace(training=True, max_steps=OF, accumulate_grad_batches=1)
    monkeypatch.setattr(Conversion, "trainer", trainer)
    for number in range(OF):
        parcel = Parcel([])
        assert conversion.on_before_batch_transfer(parcel, 0) is parcel.pieces
        assert conversion.objective.auxiliary["ar"].weight == number / OF
    assert conversion.micro_batches == OF


def test_a_rollout_is_made_where_the_model_is(short_prose):
    assert ready("rollout=prediction", "masking.score=all", "loss=mean").conversion.ahead is None


def test_every_tensor_of_a_parcel_is_pinned(short_prose, monkeypatch):
    experiment, pinned = ready(*CASES["schedule"]), []
    batch = MicroBatches(experiment.data.train_rows, 4, 0, 1)[0]
    parcel = Ahead(experiment.conversion.preparation, OF, 0)(batch, 0)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    parcel.pin_memory()
    assert [id(t) for t in pinned] == [id(t) for t in tensors(parcel.pieces)] and len(pinned) > 20


@pytest.mark.parametrize("precision", [HalfPrecision("bf16-true"), DoublePrecision()])
def test_what_was_prepared_ahead_keeps_its_types_whatever_the_precision(precision, short_prose):
    """Lightning converts the batches of a loader, and in bfloat16 the weight 1/t of a token would be rounded."""
    experiment = ready()
    parcel = Ahead(experiment.conversion.preparation, OF, 0)(MicroBatches(experiment.data.train_rows, 4, 0, 1)[0], 0)
    assert {t.dtype for t in tensors(precision.convert_input(parcel).pieces) if t.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize(("device", "workers", "pinned"), [("cuda", 2, True), ("cpu", 2, False), ("cuda", 0, False)])
def test_batches_are_pinned_where_a_gpu_waits_for_them(device, workers, pinned, short_prose):
    data = ready().data
    strategy = SimpleNamespace(root_device=torch.device(device))
    module = SimpleNamespace(ahead=lambda batch, number: batch, micro_batches=3)
    data.trainer = SimpleNamespace(lightning_module=module, strategy=strategy, global_rank=0, world_size=1)
    data.workers = workers
    loader = data.train_dataloader()
    assert (loader.pin_memory, loader.num_workers) == (pinned, workers)
    if workers:  # a process that is forked inherits the GPU, and locks that nobody there will open
        assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert len(loader) == 4 and [*loader.sampler] == [3]  # three are done


def test_the_rows_of_processes_are_every_other_one(short_prose):
    rows = ready().data.train_rows
    made = [MicroBatches(rows, 3, rank, 2) for rank in (0, 1)]
    assert len(rows) == 16 and [len(batches) for batches in made] == [2, 2]
    for rank, number in itertools.product((0, 1), (0, 1)):
        expected = collate([rows[rank + 2 * (3 * number + i)] for i in range(3)])
        assert torch.equal(made[rank][number].x0, expected.x0)


def test_batches_are_prepared_ahead_beside_a_gpu_unless_it_is_said_otherwise():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [num_workers("auto", d) for d in (gpu, cpu)] == [2, 0] and num_workers(3, cpu) == 3
    for bad in (-1, "many", True):
        with pytest.raises(ValueError, match=f"runtime.workers {bad!r} must be auto or a whole number of at least 0"):
            num_workers(bad, cpu)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_with_workers_is_the_run_without_whatever_happens(sent, tmp_path):
    """A signal reaches every process, as from a terminal or SLURM: the step is finished, which takes more batches than
    are ready, and the same command goes on after it."""
    processes, steps, workers = Processes(), "trainer.accumulate=6", "runtime.workers=2"
    fault = AtCall("dlm.conversion.module:Conversion.training_step", 1, sent, to_all=True)
    assert processes.run(tmp_path / "none" / "runs", steps) == 0
    assert processes.run(tmp_path / "two" / "runs", steps, workers, fault=fault) == 130
    # Twelve micro-batches in all, of which six are made: killed in the seventh that is left, the run would not end.
    rest = AtCall("dlm.conversion.module:Conversion.training_step", 7)
    assert processes.run(tmp_path / "two" / "runs", steps, workers, fault=rest) == 0
    assert outcome(tmp_path / "two" / "runs") == outcome(tmp_path / "none" / "runs")


class Whose(Dataset):
    """The process that loads it."""

    def __len__(self):
        return 8

    def __getitem__(self, number):
        return os.getpid()


@pytest.mark.slow
def test_a_worker_ends_when_its_parent_says_so_and_nobody_else():
    """From the moment when it is started."""
    batches = iter(training_loader(Whose(), Remaining(8, lambda: 0), 1, False))
    (worker,) = multiprocessing.active_children()
    for _ in range(2):
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            subprocess.run(["kill", f"-{sent}", str(worker.pid)], check=True)
        assert next(batches) == worker.pid
    worker.terminate()
    worker.join(10)
    worker.kill()  # one that did not obey
    assert worker.exitcode == 0
