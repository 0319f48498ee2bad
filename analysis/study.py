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
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.plan.jobs import title
from analysis.plan.slurm import launcher_options, split_overrides
from analysis.plan.study import Study, commands
from analysis.plan.sweep import FINISHED, Point, Sweep, load_sweep
from analysis.tables.earlier import Earlier
from analysis.tables.results import Results
from dlm.config.folders import sweep_files


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


def argument_parser() -> argparse.ArgumentParser:
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
    return parser


def main() -> int:
    parser = argument_parser()
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
