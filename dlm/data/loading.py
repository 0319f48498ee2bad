"""Loads the micro-batches of a training, in its own process or ahead of it in workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dlm.data.packing import PackedRows, collate
from dlm.types import Batch

WORKERS = 2  # beside a GPU: a batch of 8 x 4096 tokens takes 50 ms to prepare, and a step longer
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}  # the last two are warnings of SLURM


def num_workers(workers: int | str, device: torch.device) -> int:
    """The processes that load data for one that trains on a device; `ValueError` unless `workers` is auto or a whole
    number of at least 0."""
    if workers == "auto":
        return 0 if device.type == "cpu" else WORKERS
    if type(workers) is not int or workers < 0:
        raise ValueError(f"runtime.workers {workers!r} must be auto or a whole number of at least 0")
    return workers


class MicroBatches(Dataset):
    """The micro-batches of `batch_size` rows on which one process of `world_size` trains: every `world_size`-th row
    from `rank`, in order. `prepare(batch, number)`, if given, is what becomes of each in the process that loads it."""

    def __init__(
        self,
        rows: PackedRows,
        batch_size: int,
        rank: int,
        world_size: int,
        prepare: Callable[[Batch, int], Any] | None = None,
    ):
        self.rows, self.batch_size, self.prepare = rows, batch_size, prepare
        self.indices = range(rank, len(rows) // world_size * world_size, world_size)

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __getitem__(self, number: int) -> Any:
        start = number * self.batch_size
        batch = collate([self.rows[i] for i in self.indices[start : start + self.batch_size]])
        return batch if self.prepare is None else self.prepare(batch, number)


class Remaining(Sampler):
    """The numbers of `length` micro-batches without the first `num_done()`, which is called when iteration starts, so
    that a resumed run continues from its checkpoint."""

    def __init__(self, length: int, num_done: Callable[[], int]):
        self.length, self.num_done = length, num_done

    def __iter__(self):
        return iter(range(self.num_done(), self.length))

    def __len__(self) -> int:
        return self.length


def training_loader(data: Dataset, order: Remaining, workers: int, pinned: bool) -> DataLoader:
    """A loader of micro-batches, in memory that is `pinned` for a GPU or not. Workers are started anew and not forked:
    they would inherit a GPU that they cannot use, and locks of threads that they do not have.

    The generator is one of its own: a loader draws a seed for workers at the start of each iteration, which would
    otherwise change the random state of dropout."""
    options: dict[str, Any] = {"batch_size": None, "sampler": order, "generator": torch.Generator()}
    if not workers:
        return DataLoader(data, pin_memory=pinned, **options)
    options |= {"num_workers": workers, "multiprocessing_context": "spawn", "worker_init_fn": undisturbed}
    return Undisturbed(data, pin_memory=pinned, **options)


class Undisturbed(DataLoader):
    """A loader whose workers leave Ctrl-C, SIGTERM and SLURM's warnings, which reach all processes of a terminal or a
    job, to the process that trains: it finishes its step, for which it needs batches."""

    def __iter__(self) -> Iterator[Any]:
        resource_tracker.ensure_running()  # by workers otherwise, and it sets the mask itself
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # which a process that is started inherits
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def undisturbed(worker: int) -> None:
    """Begin a worker, in which these signals are blocked: SIGTERM from the process that trains, its parent, ends it."""
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=obey_parent, daemon=True).start()
    else:  # on macOS, which does not say who sent a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def obey_parent() -> None:
    """End this process on SIGTERM from its parent."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
