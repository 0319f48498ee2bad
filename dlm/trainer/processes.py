"""Several processes of one training, one for each device (DDP). Lightning starts the others with the command of the
first one, or torchrun or SLURM starts all of them. The first one leads: it holds the run's lease and writes all that is
written. The others follow it through the training, and end."""

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
from omegaconf import DictConfig

from dlm.config.build import num_processes
from dlm.console import is_sweep
from dlm.runs.run import Run

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # of torchrun, Lightning and SLURM
LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


def is_follower(cfg: DictConfig) -> bool:
    """Whether this process is one of several of one training, and not the first."""
    return num_processes(cfg) > 1 and any(int(os.environ.get(name) or 0) > 0 for name in RANKS)


class Follower(Run):
    """A run as those see it that only follow: they read its record, and leave writing it to the leader."""

    def update(self, **values: Any) -> None:
        """Nothing."""


def cluster() -> list[ClusterEnvironment]:
    """Under SLURM, its environment without Lightning's own requeueing: that writes a checkpoint amid a step, which
    nothing removes. The run is resumed from our own. (torchrun comes first, as with Lightning.)"""
    started_by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if started_by_slurm else []


@contextmanager
def launching() -> Iterator[None]:
    """Within, Lightning can start the other processes of this job; they run this job alone where it is one of a sweep.
    Afterwards it can do so again for the next job."""
    argv, before = sys.argv, {name: os.environ.get(name) for name in LAUNCH}
    if is_sweep():
        sys.argv = [argv[0], *HydraConfig.get().overrides.task]
    try:
        yield
    finally:
        sys.argv = argv
        launched = before["LOCAL_RANK"] is None and dist.is_available() and dist.is_initialized()
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        if launched:
            dist.destroy_process_group()


def of_all_processes(own: Any) -> list[Any]:
    """What every process of the training has, in order."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


class SameStart(Callback):
    """All processes of a training begin the same run at the same checkpoint, or none does."""

    def __init__(self, run: Run, resume: Any):
        self.start = f"run {run.id} from {resume or 'its start'}"

    def setup(self, trainer, module, stage) -> None:
        starts = of_all_processes(self.start)
        if len(set(starts)) > 1:
            raise ValueError(f"the processes of a training begin {'; '.join(starts)}: give the same command again")
