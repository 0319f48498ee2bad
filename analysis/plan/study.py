"""A study at work: what is missing of its points is trained and measured in jobs, side by side.

What others need goes first, and a run that another process works on is tried again later, so several studies may share
a runs folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from analysis.plan.jobs import Job, Work, run_module, stop, title
from analysis.plan.progress import Progress
from analysis.plan.slurm import run_on_slurm
from analysis.plan.sweep import DIVERGED, FINISHED, Point
from dlm.runs.lease import is_marked
from dlm.runs.storage import write_atomically

Command = Callable[[Point], Work]
POLL_SECONDS = 0.1
BUSY_SECONDS = 120.0  # until a leased run is tried again, since its holder may have died
TRAIN, MEASURE = "train", "measure"


@dataclass(frozen=True)
class Held:
    """A point whose run is leased by another process, and the time that was noticed (monotonic seconds)."""

    point: Point
    since: float = field(default_factory=time.monotonic)

    def may_be_free(self, runs_dir: Path) -> bool:
        """Whether the lease is released, or `BUSY_SECONDS` have passed.

        The holder may have died on another machine; its lease only expires while another process tries to acquire it.
        """
        return not is_marked(runs_dir / self.point.run) or time.monotonic() - self.since > BUSY_SECONDS


@dataclass(frozen=True)
class Commands:
    """Job bodies for a point: `train` its run, and `measure` its missing evaluations."""

    train: Command
    measure: Command


def commands(
    runs_dir: Path, threads: int, sweeps: Mapping[str, Sequence[str]], launcher: dict[str, Any] | None = None
) -> Commands:
    """The commands that train and measure a point, each with `threads` threads, here or on the cluster of a `launcher`.
    `sweeps` are the names of those that a run is of, for its loggers."""
    of_job = [f"runs_dir={runs_dir}", f"runtime.threads={threads}", "runtime.progress_bar=false"]

    def train(point: Point) -> Work:
        named = f"runtime.sweeps=[{','.join(sweeps.get(point.run, ()))}]"
        return started(launcher, "dlm.train", [*of_job, named, *point.overrides])

    def measure(point: Point) -> Work:
        settings = runs_dir / ".logs" / f"{point.run}.measure.json"
        write_atomically(settings, json.dumps([e.settings for e in point.to_measure(runs_dir)]))
        alone = launcher and {**launcher, "nodes": 1, "tasks_per_node": 1}
        return started(alone, "analysis.plan.measure", [str(runs_dir / point.run), str(settings), str(threads)])

    def started(where: dict[str, Any] | None, module: str, arguments: list[str]) -> Work:
        if where is None:
            return partial(run_module, module, arguments)
        return partial(run_on_slurm, where, runs_dir / ".logs" / "slurm", module, arguments)

    return Commands(train, measure)


def is_ready(point: Point, runs_dir: Path) -> bool:
    """Whether every run that a point needs is finished and measured."""
    return all(need.state(runs_dir) == FINISHED and not need.to_measure(runs_dir) for need in point.needs)


class Study:
    """Trains and measures what is missing of `points`, in up to `jobs` concurrent jobs. An exception stops all."""

    def __init__(self, points: Sequence[Point], runs_dir: Path, jobs: int, command: Commands):
        self.runs_dir, self.jobs, self.command = runs_dir, jobs, command
        states = {p.run: p.state(runs_dir) for p in points}
        self.finished = {run for run, state in states.items() if state == FINISHED}
        self.to_train = {p.run: p for p in points if states[p.run] not in (FINISHED, DIVERGED)}
        self.to_measure = {p.run: p for p in points if states[p.run] != DIVERGED and p.to_measure(runs_dir)}
        self.progress = Progress([*self.to_train.values()], [*self.to_measure.values()], runs_dir, jobs)
        self.running: list[Job] = []
        self.held: list[Held] = []
        self.failed: dict[str, Point] = {}
        print(f"{len(self.finished)} of {len(points)} runs are there, {len(self.to_train)} to train", flush=True)
        print(self.progress.line([]), flush=True)

    def run(self) -> list[Point]:
        """Run all jobs. Returns the points that failed, and those never started because a point they need failed."""
        try:
            changed = True  # whether something may have become startable
            while changed or self.running or self.held:
                if changed:
                    self.start_jobs()
                changed = self.reap_jobs() + self.requeue_released() > 0
                if not changed:
                    time.sleep(POLL_SECONDS)
        finally:
            stop(self.running)
        for point in (*self.to_train.values(), *self.to_measure.values()):  # a point they need failed
            print(f"left out {title(point)}: it needs what failed", flush=True)
            self.failed[point.run] = point
        return list(self.failed.values())

    def startable(self) -> Iterator[tuple[str, Point]]:
        """(kind, point) of the jobs that can start: measuring finished runs first, then training."""
        ready = self.finished - {job.point.run for job in self.running}
        yield from ((MEASURE, p) for p in self.to_measure.values() if p.run in ready)
        yield from ((TRAIN, p) for p in self.to_train.values() if is_ready(p, self.runs_dir))

    def start_jobs(self) -> None:
        """Start ready points until `jobs` jobs are running."""
        logs = self.runs_dir / ".logs"
        logs.mkdir(parents=True, exist_ok=True)
        for kind, point in [*islice(self.startable(), self.jobs - len(self.running))]:
            del (self.to_train if kind == TRAIN else self.to_measure)[point.run]
            make = self.command.train if kind == TRAIN else self.command.measure
            self.running.append(Job.start(kind, point, make(point), logs / f"{point.run}.{kind}.log"))

    def reap_jobs(self) -> int:
        """Record the outcomes of ended jobs; returns how many ended."""
        ended = [job for job in self.running if job.has_ended]
        for job in ended:
            self.running.remove(job)
            print(f"{title(job.point)} {job.outcome()}", flush=True)
            if job.is_busy:
                self.held.append(Held(job.point))
                continue
            if job.failed:
                self.failed[job.point.run] = job.point
                self.to_measure.pop(job.point.run, None)
            elif job.kind == TRAIN:
                self.record_trained(job.point)
            self.progress.done(job.kind, job.point, job.seconds, job.failed)
            print(self.progress.line([(j.kind, j.point, j.seconds) for j in self.running]), flush=True)
        return len(ended)

    def record_trained(self, point: Point) -> None:
        """Record the state of a run after training. A diverged run is not measured."""
        state = point.state(self.runs_dir)
        if state == FINISHED:
            self.finished.add(point.run)
        elif state == DIVERGED:
            print(f"{title(point)} diverged: nothing is measured of it", flush=True)
            self.to_measure.pop(point.run, None)

    def requeue_released(self) -> int:
        """Requeue runs whose lease was released, after the other runs to train; returns how many."""
        released = [h for h in self.held if h.may_be_free(self.runs_dir)]
        self.held = [h for h in self.held if h not in released]
        self.to_train |= {h.point.run: h.point for h in released}
        return len(released)
