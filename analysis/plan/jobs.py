"""The jobs of a study: processes that each run a module as `python -m` would, but begin with everything imported.

Importing torch, transformers and Lightning takes seconds, and a study has hundreds of jobs: one process, which
`multiprocessing` calls the fork server, imports them once, and every job is a fork of it.
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

# What jobs import, but for the modules that they run. None may ask for a GPU: it could not be used in a fork then.
SHARED = ["dlm.trainer.fit", "dlm.measurement.store"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(SHARED)
GRACE_SECONDS = 30.0

Work = Callable[[], None]  # what a job does; it can be pickled


def run_module(module: str, arguments: Sequence[str]) -> None:
    """`python -m module arguments`."""
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@dataclass
class Job:
    """A point in training or being measured: a process, and the file with what it prints."""

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
        """Whether it ended because another process works on its run."""
        return self.process.exitcode == BUSY

    def outcome(self) -> str:
        """`done in 60 s`, or the last line of the log and where it is."""
        if not self.failed:
            return f"done in {self.seconds:.0f} s"
        if self.is_busy:
            return "is BUSY: another process works on it; it is come back to"
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"FAILED in {self.seconds:.0f} s: {last} (all of it: {self.log})"


def begin(work: Work, log: Path) -> None:
    """What a job's process does first. It is in a session of its own, so that Ctrl-C reaches it once, from `stop`, and
    not from the terminal as well. It hears interrupts even if a background shell had its study ignore them, and is
    interrupted, too, when its study is killed: nothing may train a run that the next study begins again."""
    os.setsid()
    with log.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # for processes of its own, as if it were no fork
    threading.Thread(target=end_with_study, daemon=True).start()
    work()


def end_with_study() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGINT)


def stop(jobs: Sequence[Job]) -> None:
    """Interrupt the jobs, and wait until each has left its record as interrupted; kill one that does not end."""
    for job in jobs:
        print(f"stopping {title(job.point)}", flush=True)
        os.kill(job.process.pid, signal.SIGINT)
    for job in jobs:
        job.process.join(GRACE_SECONDS)
        if not job.has_ended:
            job.process.kill()
            job.process.join()


def title(point: Point) -> str:
    return f"{point.name} ({point.label}), seed {point.seed}, run {point.run}"
