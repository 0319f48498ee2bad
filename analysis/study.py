"""Run what is missing of sweeps: `python -m analysis.study sweeps/*.yaml [--jobs 2] [override ...]`.

Trains the missing runs and makes the missing evaluations of the sweeps. Overrides, such as `lr=5e-4`, apply to every
point; `scale=smoke` chooses the scale, `tokens=N` replaces its budget and `seed=0,1,2` its seeds. `logger=wandb` sends
every run and its measurements to Weights & Biases, grouped by sweep; the runs stay the same.

A study can be restarted at any time: a finished run is never trained again, an interrupted one resumes from its
checkpoint, and no measurement is repeated. All points of the first seed come before those of the second. A run that
another process works on is tried again later, so several studies may share a runs folder. `--with results.json` skips
what a report's results already hold. With `hydra/launcher=slurm hydra.launcher.partition=gpu --jobs 64` every run is a
job of SLURM, up to 64 at a time. On a machine with other work, `--threads 1` keeps a job to one core.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from analysis.plan.jobs import Job, Work, run_module, stop, title
from analysis.plan.progress import Progress
from analysis.plan.slurm import launcher_options, run_on_slurm, split_overrides
from analysis.plan.sweep import DIVERGED, FINISHED, Point, Sweep, load_sweep
from analysis.tables.earlier import Earlier
from analysis.tables.results import Results
from dlm.config.folders import sweep_files
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


def plan_points(sweeps: Iterable[Sweep], earlier: Earlier | None = None) -> list[Point]:
    """One point per run of the sweeps and of the points they need, with the union of its evaluations.

    Points that others need come first, then the rest seed by seed. What `earlier` results hold is left out, except for
    runs that a missing point needs.
    """
    merged: dict[str, Point] = {}
    needed: set[str] = set()

    def add(point: Point) -> None:
        for need in point.needs:
            needed.add(need.run)
            add(need)
        first = merged.setdefault(point.run, point)
        evaluations = {e.file: e for e in (*first.evaluations, *point.evaluations)}
        merged[point.run] = replace(first, evaluations=tuple(evaluations.values()))

    for sweep in sweeps:
        for point in filter(None, map((earlier or Earlier.none()).lacking, sweep.points)):
            add(point)
    rank = {seed: i for i, seed in enumerate(dict.fromkeys(p.seed for p in merged.values()))}
    return sorted(merged.values(), key=lambda p: (p.run not in needed, rank[p.seed]))


def sweeps_of_runs(sweeps: Iterable[Sweep]) -> dict[str, list[str]]:
    """The names of the sweeps that have a run, for each run."""
    sweeps_of: dict[str, list[str]] = {}
    for sweep in sweeps:
        for run in dict.fromkeys(point.run for point in sweep.points):
            sweeps_of.setdefault(run, []).append(sweep.name)
    return sweeps_of


def chosen(sweeps: Sequence[Sweep], names: Sequence[str]) -> list[Sweep]:
    """The sweeps with only the points named so. Raises `ValueError` for a name that no sweep has."""
    known = {point.name for sweep in sweeps for point in sweep.points}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"--point {unknown[0]!r} is no point of these sweeps: choose one of {'; '.join(sorted(known))}"
        )
    return [replace(sweep, points=tuple(p for p in sweep.points if p.name in names)) for sweep in sweeps]


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


def show(points: Sequence[Point], runs_dir: Path) -> None:
    """Print the state of every point and the remaining work, without starting anything."""
    for point in points:
        print(f"{point.state(runs_dir)}: {title(point)}: {' '.join(point.overrides)}")
        if missing := point.to_measure(runs_dir):
            print(f"    to measure: {len(missing)} of {len(point.evaluations)}")
    finished = [p for p in points if p.state(runs_dir) == FINISHED]
    left = [p.budget for p in points if p not in finished]
    budget = ", ".join(f"{sum(n for of, n in left if of == unit):,.0f} {unit}" for unit in dict(left)) or "nothing"
    evaluations = sum(len(p.to_measure(runs_dir)) for p in points)
    print(f"{len(points) - len(finished)} of {len(points)} runs to train, {budget}; {evaluations} evaluations")


def interrupt(*_: object) -> None:
    """Treat SIGTERM like Ctrl-C, so that it stops the jobs as well."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="sweep.yaml | override",
        help="YAMLs in sweeps/; Hydra overrides for every point",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of a job (default: its share of the cores)")
    parser.add_argument(
        "--with", type=Path, dest="earlier", metavar="RESULTS", help="leave out what these results hold"
    )
    parser.add_argument("--point", action="append", default=[], metavar="NAME", help="only this point of the sweeps")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained and measured")
    arguments = parser.parse_intermixed_args()  # overrides may come before and after options
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
        if arguments.threads is not None and arguments.threads < 1:
            raise ValueError(f"--threads {arguments.threads} must be at least 1")
        sweeps = [path for a in arguments.arguments if a.endswith(".yaml") for path in sweep_files(a)]
        if not sweeps:
            raise ValueError("no sweep is named: give a YAML in sweeps/, or all of them (sweeps/*.yaml)")
        overrides = [a for a in arguments.arguments if not a.endswith(".yaml")]
        earlier = Earlier(Results.load(arguments.earlier)) if arguments.earlier else None
        of_launcher, overrides = split_overrides(overrides)
        launcher = launcher_options(of_launcher)
        loaded = [load_sweep(path, overrides) for path in sweeps]
        points = plan_points(chosen(loaded, arguments.point) if arguments.point else loaded, earlier)
        if arguments.dry_run:
            show(points, arguments.runs)
            return 0
        cores = launcher["cpus_per_task"] if launcher else (os.cpu_count() or 1) // arguments.jobs
        threads = arguments.threads or max(1, cores or 1)
        command = commands(arguments.runs, threads, sweeps_of_runs(loaded), launcher)
        failed = Study(points, arguments.runs, arguments.jobs, command).run()
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped: the same command goes on where it was", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
