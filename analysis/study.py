"""Do what is missing of sweeps: `python -m analysis.study sweeps/*.yaml [--jobs 2] [override ...]`.

Trains the runs that are not there and measures what the sweeps evaluate of them. Overrides go to every point, such as
`lr=5e-4`; `scale=smoke` chooses the scale, `tokens=N` replaces its budget, `seed=0,1,2` its seeds.

Restartable at any point: a finished run is never trained again, an interrupted one goes on from its checkpoint, and no
measurement is made twice. The first seed of everything comes first.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.progress import Progress
from analysis.sweep import FINISHED, Point, Sweep, load_sweep
from dlm.storage import write_atomically

Command = Callable[[Point], list[str]]
POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0
TRAIN, MEASURE = "train", "measure"
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1  # see prctl(2)


@dataclass
class Job:
    """A point in training or being measured: a process, and the file with what it prints."""

    kind: str
    point: Point
    process: subprocess.Popen
    log: Path
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, kind: str, point: Point, command: list[str], log: Path) -> Job:
        print(f"{kind} {title(point)}", flush=True)
        with log.open("w") as file:
            # In a session of its own, so that Ctrl-C reaches it once, from `stop`, and not from the terminal as well.
            process = subprocess.Popen(  # noqa: S603
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=hear_interrupts
            )
        return cls(kind, point, process, log)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def outcome(self) -> str:
        """`done in 60 s`, or the last line of the log and where it is."""
        if self.process.returncode == 0:
            return f"done in {self.seconds:.0f} s"
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"FAILED in {self.seconds:.0f} s: {last} (all of it: {self.log})"


@dataclass(frozen=True)
class Commands:
    """What a job runs: the `train` of a point, and the `measure` of what is missing of it."""

    train: Command
    measure: Command


def commands(runs_dir: Path, threads: int) -> Commands:
    """The commands that train and measure a point with their share of the machine's cores."""
    own = [f"runs_dir={runs_dir}", f"trainer.volatile.threads={threads}", "trainer.volatile.progress_bar=false"]

    def measure(point: Point) -> list[str]:
        settings = runs_dir / ".logs" / f"{point.run}.measure.json"
        write_atomically(settings, json.dumps([e.settings for e in point.to_measure(runs_dir)]))
        return [sys.executable, "-m", "analysis.measure", str(runs_dir / point.run), str(settings)]

    return Commands(lambda point: [sys.executable, "-m", "dlm.train", *own, *point.overrides], measure)


def everything(sweeps: Iterable[Sweep]) -> list[Point]:
    """One point per run of the sweeps and of what they need, with all that is evaluated of it; in the order in which
    they are best done: what others need first, then seed by seed."""
    merged: dict[str, Point] = {}
    needed: set[str] = set()

    def add(point: Point) -> None:
        for need in point.needs:
            needed.add(need.run)
            add(need)
        known = merged.setdefault(point.run, point)
        evaluations = {e.file: e for e in (*known.evaluations, *point.evaluations)}
        merged[point.run] = replace(known, evaluations=tuple(evaluations.values()))

    for sweep in sweeps:
        for point in sweep.points:
            add(point)
    rank = {seed: i for i, seed in enumerate(dict.fromkeys(p.seed for p in merged.values()))}
    return sorted(merged.values(), key=lambda p: (p.run not in needed, rank[p.seed]))


def is_ready(point: Point, runs_dir: Path) -> bool:
    """Whether all is there that a point needs."""
    return all(need.state(runs_dir) == FINISHED and not need.to_measure(runs_dir) for need in point.needs)


def study(points: Sequence[Point], runs_dir: Path, jobs: int, command: Commands) -> list[Point]:
    """Train and measure what is missing, `jobs` side by side; returns the points that failed, or that need one that
    failed. Whatever ends it early ends its jobs, too."""
    to_train = [point for point in points if point.state(runs_dir) != FINISHED]
    to_measure = [point for point in points if point.to_measure(runs_dir)]
    print(f"{len(points) - len(to_train)} of {len(points)} runs are there, {len(to_train)} to train", flush=True)
    progress = Progress(to_train, to_measure, runs_dir, jobs)
    print(progress.line([]), flush=True)
    logs = runs_dir / ".logs"
    logs.mkdir(parents=True, exist_ok=True)
    running: list[Job] = []
    failed: dict[str, Point] = {}
    changed = True  # whether something may have become startable
    try:
        while running or changed:
            changed, busy = False, {job.point.run for job in running}
            for kind, point in startable(to_train, to_measure, busy, runs_dir)[: jobs - len(running)]:
                (to_train if kind == TRAIN else to_measure).remove(point)
                make = command.train if kind == TRAIN else command.measure
                running.append(Job.start(kind, point, make(point), logs / f"{point.run}.{kind}.log"))
            while running and not (ended := [job for job in running if job.process.poll() is not None]):
                time.sleep(POLL_SECONDS)
            for job in ended if running else ():
                changed = True
                running.remove(job)
                if job.process.returncode:
                    failed[job.point.run] = job.point
                    to_measure = [point for point in to_measure if point.run != job.point.run]
                progress.done(job.kind, job.point, job.seconds)
                print(f"{title(job.point)} {job.outcome()}", flush=True)
                print(progress.line([(j.kind, j.point, j.seconds) for j in running]), flush=True)
    finally:
        stop(running)
    for point in (*to_train, *to_measure):  # nothing that they need will come
        print(f"left out {title(point)}: it needs what failed", flush=True)
        failed[point.run] = point
    return list(failed.values())


def startable(
    to_train: list[Point], to_measure: list[Point], busy: set[str], runs_dir: Path
) -> list[tuple[str, Point]]:
    """What can be begun now, runs that are finished being measured first."""
    trained = [p for p in to_measure if p.run not in busy and p.state(runs_dir) == FINISHED]
    ready = [p for p in to_train if is_ready(p, runs_dir)]
    return [(MEASURE, p) for p in trained] + [(TRAIN, p) for p in ready]


def stop(jobs: list[Job]) -> None:
    """Interrupt the jobs, and wait until each has left its record as interrupted; kill one that does not end."""
    for job in jobs:
        print(f"stopping {title(job.point)}", flush=True)
        job.process.send_signal(signal.SIGINT)
    for job in jobs:
        try:
            job.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


def title(point: Point) -> str:
    return f"{point.name} ({point.label}), seed {point.seed}, run {point.run}"


def show(points: Sequence[Point], runs_dir: Path) -> None:
    """What a study would find and do."""
    for point in points:
        print(f"{point.state(runs_dir)}: {title(point)}: {' '.join(point.overrides)}")
        if missing := point.to_measure(runs_dir):
            print(f"    to measure: {len(missing)} of {len(point.evaluations)}")
    trained = [p for p in points if p.state(runs_dir) == FINISHED]
    tokens = sum(p.config["tokens"] for p in points if p not in trained)
    evaluations = sum(len(p.to_measure(runs_dir)) for p in points)
    print(f"{len(points) - len(trained)} of {len(points)} runs to train, {tokens:,} tokens; {evaluations} evaluations")


def hear_interrupts() -> None:
    """A job that a background shell's study starts would inherit that SIGINT is ignored. On Linux a job is interrupted,
    too, when its study is killed: nothing may train a run that the next study begins again."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def interrupt(*_: object) -> None:
    """SIGTERM as Ctrl-C, so that it stops the jobs, too."""
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
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained and measured")
    arguments = parser.parse_intermixed_args()  # overrides may come before and after options
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
        sweeps = [Path(a) for a in arguments.arguments if a.endswith(".yaml")]
        if not sweeps:
            raise ValueError("no sweep is named: give a YAML in sweeps/, or all of them (sweeps/*.yaml)")
        overrides = [a for a in arguments.arguments if not a.endswith(".yaml")]
        points = everything(load_sweep(path, overrides) for path in sweeps)
        if arguments.dry_run:
            show(points, arguments.runs)
            return 0
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        failed = study(points, arguments.runs, arguments.jobs, commands(arguments.runs, threads))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped: the same command goes on where it was", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
