"""Progress of a study in one line, with the remaining time estimated from the jobs that have ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from analysis.plan.sweep import FINISHED, Point
from dlm.runs.run import Run

Running = Sequence[tuple[str, Point, float]]  # running jobs: kind, point, elapsed seconds


class Progress:
    """Counts ended and failed jobs, and estimates the remaining time from the rate of each kind of job.

    Training is counted in the unit of its budget (its rate includes the final evaluation), measuring in measurements.
    Rates come from the jobs that ended in this study. Until the first training job ends, its rate comes from existing
    runs, whose records time training without evaluation. `jobs` is the number of concurrent jobs.
    """

    def __init__(self, to_train: Sequence[Point], to_measure: Sequence[Point], runs_dir: Path, jobs: int):
        self.jobs, self.began, self.runs_dir = jobs, time.monotonic(), runs_dir
        self.unit = next((p.budget[0] for p in to_train), "tokens")
        self.left = {"train": {p.run: p.budget[1] for p in to_train}}
        self.left["measure"] = {p.run: len(p.to_measure(runs_dir)) for p in to_measure}
        self.total = {kind: len(left) for kind, left in self.left.items()}
        self.ended_work = {kind: [0.0, 0.0] for kind in self.left}  # kind → [seconds, units of work] of ended jobs
        self.num_succeeded, self.num_failed = dict.fromkeys(self.left, 0), 0

    def done(self, kind: str, point: Point, seconds: float, failed: bool = False) -> None:
        """Record that a job of this kind has ended after `seconds`."""
        self.num_failed += failed
        self.num_succeeded[kind] += not failed
        work = self.left[kind].pop(point.run)
        self.ended_work[kind][0] += seconds
        self.ended_work[kind][1] += work
        if point.state(self.runs_dir) != FINISHED:
            self.left["measure"].pop(point.run, None)  # without a finished run there is nothing to measure

    def rate(self, kind: str) -> float | None:
        """Seconds per unit of work; None if no such job has been timed."""
        seconds, work = self.ended_work[kind]
        if work:
            return seconds / work
        return self.existing_rate if kind == "train" else None

    @cached_property
    def existing_rate(self) -> float | None:
        """Seconds per unit of the budget over the existing runs; None if no record gives both."""
        timed = [*filter(None, (training_cost(path.parent, self.unit) for path in self.runs_dir.glob("*/run.json")))]
        return sum(s for s, _ in timed) / sum(n for _, n in timed) if timed else None

    def seconds_left(self, running: Running) -> float | None:
        """Estimated seconds until all jobs are done; None if the rate of a kind with work left is unknown."""
        rates = {kind: self.rate(kind) for kind, left in self.left.items() if left}
        if None in rates.values():
            return None
        work = sum(rates[kind] * sum(left.values()) for kind, left in self.left.items() if left)
        spent = sum(min(s, rates[kind] * self.left[kind][point.run]) for kind, point, s in running)
        return max(0.0, work - spent) / self.jobs

    def line(self, running: Running) -> str:
        """`[12 of 96 runs trained, 10 of 40 measured, 1 FAILED; 35 min, about 150 min to go]`."""
        done = {kind: f"{self.num_succeeded[kind]} of {total}" for kind, total in self.total.items()}
        failed = f", {self.num_failed} FAILED" if self.num_failed else ""
        left = self.seconds_left(running)
        remaining = "time to go not known yet" if left is None else f"about {left / 60:.0f} min to go"
        spent = (time.monotonic() - self.began) / 60
        return f"[{done['train']} runs trained, {done['measure']} measured{failed}; {spent:.0f} min, {remaining}]"


def training_cost(folder: Path, unit: str) -> tuple[float, float] | None:
    """The seconds and the budget of a run's training; None if its record lacks them or is unreadable."""
    try:
        record = Run(folder).record
    except ValueError:
        return None
    seconds, spent = record.get("train_seconds"), record.get("budget", {}).get(unit) or record.get(unit)
    return (seconds, spent) if seconds and spent else None
