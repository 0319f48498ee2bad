"""The jobs of a study: processes that each run a module as `python -m` would, forked after the slow imports.

Importing torch, transformers and Lightning takes seconds, and a study has hundreds of jobs. So one process, the fork
server of `multiprocessing`, imports them once, and every job is a fork of it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from analysis.plan.sweep import Point
from dlm.runs.lease import BUSY

# Modules preloaded by the fork server. None may initialise CUDA: a forked process could not use the GPU afterwards.
SHARED = ["dlm.trainer.fit", "dlm.measurement.store"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(SHARED)
GRACE_SECONDS = 30.0

Work = Callable[[], None]  # the body of a job; picklable


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` in this process."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@dataclass
class Job:
    """A process that trains or measures a point, and the `log` file that receives its output."""

    kind: str
    point: Point
    process: ForkServerProcess
    log: Path
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, kind: str, point: Point, work: Work, log: Path) -> Job:
        print(f"{kind} {title(point)}", flush=True)
        log.write_text("")
        process = FORKS.Process(target=begin, args=(work, log))
        process.start()
        return cls(kind, point, process, log)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def has_ended(self) -> bool:
        return not self.process.is_alive()

    @property
    def failed(self) -> bool:
        return self.process.exitcode != 0

    @property
    def is_busy(self) -> bool:
        """Whether it ended because another process holds the run's lease."""
        return self.process.exitcode == BUSY

    def outcome(self) -> str:
        """`done in 60 s`; for a failure, the last line of the log and its path."""
        if not self.failed:
            return f"done in {self.seconds:.0f} s"
        if self.is_busy:
            return "is BUSY: another process works on it; it will be tried again"
        lines = self.log.read_text(errors="replace").split("\n")
        last_line = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"FAILED in {self.seconds:.0f} s: {last_line} (all of it: {self.log})"


def begin(work: Work, log: Path) -> None:
    """Entry point of a job's process: redirect its output to `log`, set up signals, then call `work`.

    The process leads its own session, so that Ctrl-C reaches it once, from `stop`, and not also from the terminal. It
    restores the default SIGINT handler, since a background shell may have started the study with SIGINT ignored. It is
    also interrupted when the study is killed; otherwise it would train a run that the next study starts as well.
    """
    os.setsid()
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # default start method, as under `python -m`
    threading.Thread(target=end_with_study, daemon=True).start()
    work()


def end_with_study() -> None:
    """Block until the study's process has ended, then interrupt this one."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGINT)


def stop(jobs: Sequence[Job]) -> None:
    """Interrupt the jobs and wait for them to record the interruption; kill those still alive after `GRACE_SECONDS`."""
    for job in jobs:
        print(f"stopping {title(job.point)}", flush=True)
        os.kill(job.process.pid, signal.SIGINT)
    for job in jobs:
        job.process.join(GRACE_SECONDS)
        if not job.has_ended:
            job.process.kill()
            job.process.join()


def title(point: Point) -> str:
    """How messages name a point: its name, label, seed and run id."""
    return f"{point.name} ({point.label}), seed {point.seed}, run {point.run}"
