"""Train what is missing of a sweep: `python -m analysis.study sweeps/table1_attention.yaml [--jobs 2] [override ...]`.

Restartable at any point: a finished run is never trained again, an interrupted one goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from analysis.sweep import Point, load_sweep

Command = Callable[[Point], list[str]]


def train_command(runs_dir: Path, threads: int) -> Command:
    """The command that trains a point with its share of the machine's cores."""
    own = [f"runs_dir={runs_dir}", f"trainer.volatile.threads={threads}", "trainer.volatile.progress_bar=false"]
    return lambda point: [sys.executable, "-m", "dlm.train", *own, *point.overrides]


def study(points: Sequence[Point], runs_dir: Path, jobs: int, command: Command) -> list[Point]:
    """Train the points that have no finished run, `jobs` side by side; returns those that failed."""
    missing = [point for point in points if point.find(runs_dir) is None]
    print(f"{len(points) - len(missing)} of {len(points)} runs are there, {len(missing)} to train", flush=True)
    logs = runs_dir / ".logs"
    logs.mkdir(parents=True, exist_ok=True)
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(train_one, command(point), point, logs): point for point in missing}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                point, (ok, seconds) = futures[future], future.result()
                log = f": see {logs / point.run}.log" if not ok else ""
                print(f"[{done} of {len(missing)}] {title(point)} {'done' if ok else 'FAILED'} in {seconds:.0f} s{log}")
                failed += [] if ok else [point]
        except KeyboardInterrupt:  # the jobs got the signal too; what waits must not start
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def train_one(command: list[str], point: Point, logs: Path) -> tuple[bool, float]:
    """Whether the command succeeded, and its seconds; what it printed is in `<logs>/<run>.log`."""
    print(f"start {title(point)}", flush=True)
    begin = time.monotonic()
    with (logs / f"{point.run}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
    return done.returncode == 0, time.monotonic() - begin


def title(point: Point) -> str:
    return f"{point.name} ({point.label}), seed {point.seed}, run {point.run}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="a YAML in sweeps/")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every point, such as lr=5e-4")
    parser.add_argument("--tokens", type=int, help="the budget, instead of the sweep's own")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs folder (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained")
    arguments = parser.parse_args()
    try:
        if arguments.jobs < 1:
            raise ValueError(f"--jobs {arguments.jobs} must be at least 1")
        points = load_sweep(arguments.sweep, arguments.overrides, arguments.tokens).points
    except ValueError as error:
        parser.error(str(error))
    if arguments.dry_run:
        for point in points:
            state = "finished" if point.find(arguments.runs) else "missing "
            print(f"{state} {title(point)}: {' '.join(point.overrides)}")
        return 0
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    return 1 if study(points, arguments.runs, arguments.jobs, train_command(arguments.runs, threads)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
