"""How far a study is, and when it will be done: one line, from what its jobs have taken so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from analysis.plan.sweep import FINISHED, Point
from dlm.runs.run import Run

Running = Sequence[tuple[str, Point, float]]  # the kind of a job, its point, and for how many seconds it runs


class Progress:
    """Work is counted per kind of job: seconds per trained token (with the evaluation at the end of a run) and seconds
    per measurement. The rates are those of the jobs that this study has seen end; before that, of the runs that are
    there, in which only training was timed. `jobs` run side by side."""

    def __init__(self, to_train: Sequence[Point], to_measure: Sequence[Point], runs_dir: Path, jobs: int):
        self.jobs, self.began, self.runs_dir = jobs, time.monotonic(), runs_dir
        self.left = {"train": {p.run: p.config["tokens"] for p in to_train}}
        self.left["measure"] = {p.run: len(p.to_measure(runs_dir)) for p in to_measure}
        self.total = {kind: len(left) for kind, left in self.left.items()}
        self.seen = {kind: [0.0, 0.0] for kind in self.left}  # seconds, units of work
        self.ended_well, self.num_failed = dict.fromkeys(self.left, 0), 0

    def done(self, kind: str, point: Point, seconds: float, failed: bool = False) -> None:
        """A job has ended, well or badly."""
        self.num_failed += failed
        self.ended_well[kind] += not failed
        work = self.left[kind].pop(point.run)
        self.seen[kind][0] += seconds
        self.seen[kind][1] += work
        if point.state(self.runs_dir) != FINISHED:
            self.left["measure"].pop(point.run, None)  # what is not trained is not measured

    def rate(self, kind: str) -> float | None:
        """Seconds per unit of work; None where nothing is known."""
        seconds, work = self.seen[kind]
        if work:
            return seconds / work
        return self.rate_before if kind == "train" else None

    @cached_property
    def rate_before(self) -> float | None:
        """Seconds per token of the runs that were there before."""
        timed = [*filter(None, (cost(path.parent) for path in self.runs_dir.glob("*/run.json")))]
        return sum(s for s, _ in timed) / sum(n for _, n in timed) if timed else None

    def seconds_left(self, running: Running) -> float | None:
        """None where a rate is not known yet."""
        rates = {kind: self.rate(kind) for kind, left in self.left.items() if left}
        if None in rates.values():
            return None
        work = sum(rates[kind] * sum(left.values()) for kind, left in self.left.items() if left)
        spent = sum(min(s, rates[kind] * self.left[kind][point.run]) for kind, point, s in running)
        return max(0.0, work - spent) / self.jobs

    def line(self, running: Running) -> str:
        """`[12 of 96 runs trained, 10 of 40 measured, 1 FAILED; 35 min, about 150 min to go]`."""
        done = {kind: f"{self.ended_well[kind]} of {total}" for kind, total in self.total.items()}
        failed = f", {self.num_failed} FAILED" if self.num_failed else ""
        left = self.seconds_left(running)
        ahead = "time to go not known yet" if left is None else f"about {left / 60:.0f} min to go"
        spent = (time.monotonic() - self.began) / 60
        return f"[{done['train']} runs trained, {done['measure']} measured{failed}; {spent:.0f} min, {ahead}]"


def cost(folder: Path) -> tuple[float, int] | None:
    """The seconds and tokens of a run's training; None where its record does not say or cannot be read."""
    try:
        record = Run(folder).record
    except ValueError:
        return None
    seconds, tokens = record.get("train_seconds"), record.get("tokens")
    return (seconds, tokens) if seconds and tokens else None
