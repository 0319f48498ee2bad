"""Train what is missing of a sweep: `python -m analysis.study sweeps/table1_attention.yaml [--jobs 2] [override ...]`.

Overrides go to every point: `lr=5e-4`. `tokens=N` replaces the sweep's budget, `seed=0,1,2` its seeds.
Restartable at any point: a finished run is never trained again, an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.sweep import FINISHED, Point, load_sweep

Command = Callable[[Point], list[str]]
POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0


@dataclass
class Job:
    """A point in training: a process, and the file with what it prints."""

    point: Point
    process: subprocess.Popen
    log: Path
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, point: Point, command: list[str], log: Path) -> Job:
        print(f"start {title(point)}", flush=True)
        with log.open("w") as file:
            # In a session of its own, so that Ctrl-C reaches it once, from `stop`, and not from the terminal as well.
            process = subprocess.Popen(  # noqa: S603
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=hear_interrupts
            )
        return cls(point, process, log)

    def outcome(self) -> str:
        """`done in 60 s`, or the last line of the log and where it is."""
        seconds = f"in {time.monotonic() - self.began:.0f} s"
        if self.process.returncode == 0:
            return f"done {seconds}"
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"FAILED {seconds}: {last} (all of it: {self.log})"


def train_command(runs_dir: Path, threads: int) -> Command:
    """The command that trains a point with its share of the machine's cores."""
    own = [f"runs_dir={runs_dir}", f"trainer.volatile.threads={threads}", "trainer.volatile.progress_bar=false"]
    return lambda point: [sys.executable, "-m", "dlm.train", *own, *point.overrides]


def study(points: Sequence[Point], runs_dir: Path, jobs: int, command: Command) -> list[Point]:
    """Train the points that have no finished run, `jobs` side by side; returns those that failed. Whatever ends it
    early ends its jobs, too."""
    waiting = [point for point in points if point.state(runs_dir) != FINISHED]
    total, done = len(waiting), 0
    print(f"{len(points) - total} of {len(points)} runs are there, {total} to train", flush=True)
    logs = runs_dir / ".logs"
    logs.mkdir(parents=True, exist_ok=True)
    running: list[Job] = []
    failed = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                point = waiting.pop(0)
                running.append(Job.start(point, command(point), logs / f"{point.run}.log"))
            time.sleep(POLL_SECONDS)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                done += 1
                failed += [job.point] if job.process.returncode else []
                print(f"[{done} of {total}] {title(job.point)} {job.outcome()}", flush=True)
    finally:
        stop(running)
    return failed


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


def hear_interrupts() -> None:
    """A job that a background shell's study starts would inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(*_: object) -> None:
    """SIGTERM as Ctrl-C, so that it stops the jobs, too."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a YAML in sweeps/")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every point, such as lr=5e-4 or seed=0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained")
    arguments = parser.parse_intermixed_args()  # overrides may come before and after options
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
        points = load_sweep(arguments.sweep, arguments.overrides).points
        if arguments.dry_run:
            show(points, arguments.runs)
            return 0
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        failed = study(points, arguments.runs, arguments.jobs, train_command(arguments.runs, threads))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("stopped: the same command goes on where it was", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
