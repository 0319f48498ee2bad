"""The jobs of a study as jobs of SLURM, through submitit and the presets of dlm.train (hydra/launcher=slurm).

A job of the study, which is a process here, queues one there, waits for it, and ends with its exit code. So the study
itself is the same on a cluster.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.plan.jobs import run_module
from dlm.config.folders import CONF

KEYS = ("hydra/launcher", "hydra.launcher")  # of overrides that are about the launcher
LAUNCHERS = ("slurm", "slurm_node")
# What submitit calls by the same name for all clusters; the rest is SLURM's.
GENERAL = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "stderr_to_stdout")
LEFT_OUT = ("_target_", "submitit_folder", "name", "max_num_timeout")
POLL_SECONDS, GRACE_SECONDS = 2.0, 20.0
INTERRUPTED = (130, -1)  # by a signal, and by submitit when it queues a job again


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that are about the launcher, and the others."""
    ours = [o for o in overrides if o.partition("=")[0].lstrip("+").startswith(KEYS)]
    return ours, [o for o in overrides if o not in ours]


def launcher_options(overrides: Sequence[str]) -> dict[str, Any] | None:
    """The options of the launcher that the overrides choose; None if they choose none. Raises `ValueError` for another
    launcher than SLURM's, and for options that it lacks."""
    if not overrides:
        return None
    names = [o.partition("=")[2] for o in overrides if o.startswith("hydra/launcher=")]
    if not names or names[-1] not in LAUNCHERS:
        raise ValueError(f"{' '.join(overrides)}: a study takes hydra/launcher={' or '.join(LAUNCHERS)}, or --jobs N")
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose("train", [*overrides], return_hydra_config=True)
        return OmegaConf.to_container(
            OmegaConf.masked_copy(config.hydra.launcher, [k for k in config.hydra.launcher if k not in LEFT_OUT[:3]])
        )
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(
            f"{' '.join(overrides)}: {' '.join(str(error).split())} (it needs pip install 'dlm[slurm]')"
        ) from error


@dataclass(frozen=True)
class Module:
    """`python -m name arguments` as a job of submitit, which gives its exit code. Queued again, it starts again."""

    name: str
    arguments: Sequence[str]

    def __call__(self) -> int:
        try:
            run_module(self.name, self.arguments)
        except SystemExit as end:
            if end.code in INTERRUPTED:
                raise
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    def checkpoint(self) -> Any:
        """What submitit queues when the job's time is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_on_slurm(options: Mapping[str, Any], folder: Path, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` as a job of SLURM, print what it printed, and end with its exit code. Files of
    submitit go to `folder`. An interruption cancels the job."""
    job = executor(options, folder).submit(Module(module, arguments))
    print(f"job {job.job_id} of SLURM", flush=True)
    try:
        wait_for(job)
    except KeyboardInterrupt:
        job.cancel(check=False)
        raise
    print(job.stdout() or "", flush=True)
    if not job.paths.result_pickle.exists():
        raise SystemExit(f"job {job.job_id} of SLURM ended without a result: it was cancelled, or killed")
    raise SystemExit(job.result())


def executor(options: Mapping[str, Any], folder: Path) -> Any:
    """What queues jobs with the options of a launcher."""
    import submitit

    slurm = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=options["max_num_timeout"])
    parameters = {k: v for k, v in options.items() if k not in LEFT_OUT}
    slurm.update_parameters(**{k if k in GENERAL else f"slurm_{k}": v for k, v in parameters.items()})
    return slurm


def wait_for(job: Any) -> None:
    """Wait until a job has its result, or is in no queue any more: without accounting submitit would wait forever."""
    while not job.paths.result_pickle.exists():
        time.sleep(POLL_SECONDS)
        if not is_queued(job.job_id):
            time.sleep(GRACE_SECONDS)  # a shared disk may be late
            if not is_queued(job.job_id):
                return


def is_queued(job_id: str) -> bool:
    """Whether a job waits or runs. True if the queue does not answer."""
    command = ["squeue", "-h", "-o", "%i", "-j", job_id]
    asked = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  (our own command, no shell)
    return job_id in asked.stdout.split() or (asked.returncode != 0 and "Invalid job id" not in asked.stderr)
