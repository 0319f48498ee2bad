"""A disk that is full or cannot be written, files that are cut off or have a flipped bit: named, nothing good lost."""

import contextlib
import os
import random
import subprocess

import pytest
import torch
from common import config, everyday
from small_runs import SMALL, metrics, weights

from dlm.conversion.module import Conversion
from dlm.runs.run import Run
from dlm.runs.storage import disk_is_full, read_json, write_json
from dlm.train import train
from dlm.trainer.checkpoints import LAST, PREVIOUS, damage, newest_intact

pytestmark = [pytest.mark.trains, pytest.mark.usefixtures("short_prose")]

EVERY_STEP = "runtime.checkpoint_every=1"


@pytest.fixture
def small(runs_dir):
    return lambda *overrides: config(*SMALL, EVERY_STEP, f"runs_dir={runs_dir}", *overrides)


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own. `disk("remount,…")` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr}")

    mount("size=22m")
    yield folder, mount
    subprocess.run(["umount", "-l", folder], check=True)


def flip(path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def interrupted(small, monkeypatch, micro_batch: int) -> Run:
    """A run that broke off in its `micro_batch`-th micro-batch."""
    step = Conversion.training_step

    def breaks(self, batch, batch_idx):
        if self.micro_batches == micro_batch:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    cfg = small()
    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "training_step", breaks)
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    return Run.create(cfg, {})


def test_every_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(tmp_path):
    path, values = tmp_path / LAST, {"weights": torch.arange(300.0), "step": 7}
    torch.save(values, path)
    whole, rng = path.read_bytes(), random.Random(0)
    assert damage(path) is None
    found = 0
    for bit in rng.sample(range(8 * len(whole)), 200):
        flip(path, bit)
        if damage(path) is None:  # in the padding between the members
            loaded = torch.load(path, weights_only=True)
            assert torch.equal(loaded["weights"], values["weights"]) and loaded["step"] == 7
        else:
            found += 1
        path.write_bytes(whole)
    assert found > 100


@pytest.mark.parametrize("fault", everyday(["a bit flipped", "cut off"]))
def test_a_damaged_checkpoint_is_named_and_kept_and_the_run_goes_on_from_the_one_before(
    fault,
    small,
    runs_dir,
    monkeypatch,
    capsys,
):
    straight = train(config(*SMALL, EVERY_STEP, f"runs_dir={runs_dir / 'straight'}"))
    run = interrupted(small, monkeypatch, 4)
    assert {p.name for p in run.checkpoint.parent.iterdir()} == {LAST, PREVIOUS}
    if fault == "cut off":
        run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:-100_000])
    else:
        flip(run.checkpoint, 8 * run.checkpoint.stat().st_size // 2)
    steps = []
    monkeypatch.setattr(Conversion, "on_train_start", lambda self: steps.append(self.trainer.global_step))
    result = train(small())
    assert f"the checkpoint {run.checkpoint} is damaged" in capsys.readouterr().err and steps == [2]
    before, after = weights(runs_dir / "straight", straight), weights(runs_dir, result)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert metrics(runs_dir, result).equals(metrics(runs_dir / "straight", straight))


def test_where_every_checkpoint_is_damaged_both_are_named_and_kept(small, monkeypatch):
    run = interrupted(small, monkeypatch, 4)
    paths = [run.checkpoint, run.checkpoint.with_name(PREVIOUS)]
    for path in paths:
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"last.ckpt is damaged .*previous.ckpt is damaged .*: delete both to train"):
        newest_intact(run.checkpoint.parent)
    assert all(path.exists() for path in paths)


def test_a_damaged_model_is_named_and_never_evaluated(small):
    run = Run.load(train(small())["id"], small().runs_dir)
    flip(run.model_folder / "model.safetensors", 8_000_000)
    with pytest.raises(ValueError, match=r"is damaged: .*model.safetensors is not what was written. Restore it"):
        run.trained_model()


@pytest.mark.parametrize("step", everyday([11, 1]))
def test_a_bit_that_flips_in_a_json_file_is_found(step, tmp_path):
    path = tmp_path / "run.json"
    write_json(path, {"loss": 2.125, "status": "finished", "nan": float("nan"), "rows": {"1": [1, 2]}})
    whole, read = path.read_bytes(), read_json(path)
    assert read["loss"] == 2.125 and "checksum" not in read
    for bit in range(0, 8 * len(whole), step):
        flip(path, bit)
        with contextlib.suppress(ValueError):
            assert repr(read_json(path)) == repr(read)
        path.write_bytes(whole)


@pytest.mark.slow
def test_a_disk_that_runs_full_costs_nothing_but_time(disk, monkeypatch):
    folder, mount = disk
    monkeypatch.setattr(Run, "require_space", lambda *_: None)  # which would have said so before
    cfg = config(*SMALL, EVERY_STEP, f"runs_dir={folder}")
    with pytest.raises(ValueError, match=r"the disk of .* is full .*: free space and give the same command again"):
        train(cfg)
    run = Run.create(cfg, {})
    assert run.status in ("interrupted", "running") and not run.model_folder.exists() and not run.temporary_files()
    assert damage(run.checkpoint) is None
    mount("remount,size=200m")
    assert train(cfg)["status"] == "finished"
    straight = train(config(*SMALL, EVERY_STEP, f"runs_dir={folder / 'straight'}"))
    before, after = weights(folder / "straight", straight), weights(folder, {"id": run.id})
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_disk_that_cannot_be_written_is_named_before_any_compute(disk, monkeypatch):
    folder, mount = disk
    mount("remount,ro")
    monkeypatch.setattr(Conversion, "training_step", lambda *_: pytest.fail("compute was spent"))
    with pytest.raises(ValueError, match=r"runs_dir .* cannot be written \(Read-only file system\)"):
        train(config(*SMALL, f"runs_dir={folder / 'runs'}"))
    assert os.listdir(folder) == []


def test_a_full_disk_is_recognised_behind_other_errors_even_where_they_form_a_ring():
    inner, outer = OSError(28, "No space left on device"), RuntimeError("torch says something else")
    outer.__context__ = inner
    assert disk_is_full(outer) and disk_is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    a, b = ValueError("a"), ValueError("b")
    a.__context__, b.__context__ = b, a
    assert not disk_is_full(a)
