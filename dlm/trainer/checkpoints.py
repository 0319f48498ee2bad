"""What a resume needs, and nothing that can be half written: `checkpoint/last.ckpt` and the one before it.

A checkpoint is written beside, synced and renamed; the one before stays as `previous.ckpt` until the next is written,
so there are never more than two. It is a zip archive whose members carry a CRC-32: a damaged one is recognised before
it is used, and the previous one is used instead.
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
from dlm.trainer.processes import of_all_processes

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Streams to a temporary file in the same folder (Lightning's own goes through memory, and through /tmp)."""

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
    """Saves every `every` optimizer steps, and where the run is asked to stop. Never amid an accumulation, and never
    after the last step: what follows is the result itself.

    The random state travels in the checkpoint (dropout is all that draws from it), that of every process of the
    training: no two of them draw the same. Lightning does not go back to a validation that was due when the checkpoint
    was made, so that is done here.
    """

    def __init__(self, path: Path, every: int, val_every: int, table: MetricTable, interruption: Interruption):
        self.path, self.every, self.val_every = path, every, val_every
        self.table, self.interruption = table, interruption
        self.random: list[dict[str, Any]] = []  # by process

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step
        rank = trainer.global_rank
        if rank < len(self.random):
            torch.set_rng_state(self.random[rank]["cpu"])
            torch.cuda.set_rng_state_all(self.random[rank]["cuda"])
        elif rank:
            torch.manual_seed(torch.initial_seed() + rank)
        if self.step and self.step % self.val_every == 0 and not self.table.validated(self.step - 1):
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # all of it: what it had counted belongs to the one before
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
        first, *others = of_all_processes({"cpu": torch.get_rng_state(), "cuda": cuda})
        return {"random": first} | ({"random_of_others": others} if others else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.random = [state_dict["random"], *state_dict.get("random_of_others", [])]


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is not damaged, by the name of the last; None where there is none at all.
    A damaged one is named, and kept as `*.damaged`. `ValueError` where every one is damaged."""
    last, previous = folder / LAST, folder / PREVIOUS
    found = [path for path in (last, previous) if path.exists()]
    problems = {path: problem for path in found if (problem := damage(path)) is not None}
    said = "; ".join(f"the checkpoint {path} is damaged ({problem})" for path, problem in problems.items())
    if found and len(problems) == len(found):
        raise ValueError(f"{said}: delete {'it' if len(found) == 1 else 'both'} to train this run from the start")
    if last in problems:
        print(f"{said}: going on from the one before", file=sys.stderr)
        last.replace(last.with_suffix(".ckpt.damaged"))
    if previous.exists() and not last.exists():
        previous.replace(last)
    return last if found else None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        if member is not None:
            return f"wrong checksum of {member}"
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # whatever zipfile and torch say about a damaged file
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
