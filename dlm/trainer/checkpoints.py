"""Checkpoints to resume from: `checkpoint/last.ckpt` and its predecessor, `previous.ckpt`.

A checkpoint is written to a temporary file, synced and renamed, so it is never half written. Its predecessor stays
until the next one is written, so there are never more than two. A checkpoint is a zip archive whose members carry a
CRC-32: damage is detected before use, and training resumes from the predecessor.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from dlm.trainer.interruption import Interruption
from dlm.trainer.metrics import MetricTable
from dlm.trainer.processes import all_gather

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams to a temporary file in the same folder (Lightning's own plugin goes through memory and /tmp)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, previous = path.with_name(f".{path.name}.tmp"), path.with_name(PREVIOUS)
        previous.unlink(missing_ok=True)
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except Exception:
            temporary.unlink()  # on a full disk every byte counts
            raise
        if path.exists():
            path.replace(previous)
        temporary.replace(path)


class Checkpoints(Checkpoint):
    """Saves every `every` optimizer steps and when the run is asked to stop. It never saves amid gradient accumulation,
    nor after the last step, which is followed by the result itself.

    The checkpoint holds the random state of every process (only dropout draws from it); no two processes draw the same.
    Lightning does not repeat a validation that was due when the checkpoint was written, so this callback does.
    """

    def __init__(self, path: Path, every: int, val_every: int, table: MetricTable, interruption: Interruption):
        self.path, self.every, self.val_every = path, every, val_every
        self.table, self.interruption = table, interruption
        self.random_states: list[dict[str, Any]] = []  # by rank

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step
        rank = trainer.global_rank
        if rank < len(self.random_states):
            torch.set_rng_state(self.random_states[rank]["cpu"])
            torch.cuda.set_rng_state_all(self.random_states[rank]["cuda"])
        elif rank:
            torch.manual_seed(torch.initial_seed() + rank)
        if self.step and self.step % self.val_every == 0 and not self.table.validated(self.step - 1):
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # from its first batch: the saved progress is that of the validation before
            trainer.validating = True
            validation.run()
            trainer.training = True

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        stop = trainer.strategy.reduce_boolean_decision(self.interruption.requested, all=False)
        if self.step < trainer.max_steps and (stop or self.step % self.every == 0):
            trainer.save_checkpoint(self.path)
            if trainer.is_global_zero:
                self.table.write()
            if stop:
                raise KeyboardInterrupt

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        first, *others = all_gather({"cpu": torch.get_rng_state(), "cuda": cuda})
        return {"random": first} | ({"random_of_others": others} if others else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.random_states = [state_dict["random"], *state_dict.get("random_of_others", [])]


def require_same_sharding(checkpoint: Path, sharded: bool) -> None:
    """Raises `ValueError` if a checkpoint was written with shards and is to be read without, or the other way round:
    the optimizer's state is laid out otherwise."""
    before = torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True).get("sharded", False)
    if before != sharded:
        strategy = "fsdp2" if before else "auto"
        raise ValueError(
            f"the checkpoint {checkpoint} was written {'with' if before else 'without'} sharded layers: go on with "
            f"runtime.strategy={strategy}, or delete it to train this run from the start"
        )


def newest_intact(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a folder, renamed to `last.ckpt`; None if there is no checkpoint. A damaged
    one is reported on stderr and kept as `*.damaged`. Raises `ValueError` if all are damaged."""
    last, previous = folder / LAST, folder / PREVIOUS
    checkpoints = [path for path in (last, previous) if path.exists()]
    problems = {path: problem for path in checkpoints if (problem := damage(path)) is not None}
    report = "; ".join(f"the checkpoint {path} is damaged ({problem})" for path, problem in problems.items())
    if checkpoints and len(problems) == len(checkpoints):
        which = "it" if len(checkpoints) == 1 else "both"
        raise ValueError(f"{report}: delete {which} to train this run from the start")
    if last in problems:
        print(f"{report}: going on from the one before", file=sys.stderr)
        last.replace(last.with_suffix(".ckpt.damaged"))
    if previous.exists() and not last.exists():
        previous.replace(last)
    return last if checkpoints else None


def damage(path: Path) -> str | None:
    """How a checkpoint is damaged, in words; None if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        if member is not None:
            return f"wrong checksum of {member}"
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # zipfile and torch raise many types for a damaged file
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
