"""Several processes train one run, one per device (DDP). Either Lightning starts the others with the command of the
first one, or torchrun or SLURM starts all of them. The first one leads: it holds the run's lease and writes all files.
The others follow it through the training and end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from hydra.core.hydra_config import HydraConfig
from lightning import Callback
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment

from dlm.console import is_sweep
from dlm.runs.run import Run

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # of torchrun, Lightning and SLURM
LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_follower(num_processes: int) -> bool:
    """Whether this process is one of the several that train a run, and not the first."""
    return num_processes > 1 and any(int(os.environ.get(name) or 0) > 0 for name in RANKS)


class Follower(Run):
    """The run in a process that follows: it reads the record and leaves writing to the leader."""

    def update(self, **values: Any) -> None:
        """Does nothing: the leader writes the record."""


def cluster() -> list[ClusterEnvironment]:
    """Under SLURM, its environment without Lightning's requeueing, which writes a checkpoint amid a step that nothing
    removes. The run resumes from our own checkpoints. (torchrun takes precedence, as in Lightning.)"""
    started_by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if started_by_slurm else []


@contextmanager
def launching() -> Iterator[None]:
    """A context in which Lightning can start the other processes of this job. In a sweep they run this job only. On
    leaving, the environment is restored, so that the next job can start its own."""
    argv, environment = sys.argv, {name: os.environ.get(name) for name in LAUNCH}
    if is_sweep():
        sys.argv = [argv[0], *HydraConfig.get().overrides.task]
    try:
        yield
    finally:
        sys.argv = argv
        launched = environment["LOCAL_RANK"] is None and dist.is_available() and dist.is_initialized()
        for name, value in environment.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        if launched:
            dist.destroy_process_group()


def all_gather(value: Any) -> list[Any]:
    """The `value` of every process, by rank; [value] if there is one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


class SameStart(Callback):
    """Raises `ValueError` unless all processes start the same run from the same checkpoint."""

    def __init__(self, run: Run, resume: Any):
        self.start = f"run {run.id} from {resume or 'its start'}"

    def setup(self, trainer, module, stage) -> None:
        starts = all_gather(self.start)
        if len(set(starts)) > 1:
            raise ValueError(f"the processes of a training begin {'; '.join(starts)}: give the same command again")
