"""Manage a folder of runs: `python -m dlm.runs list|show|rm|gc|verify`.

list     every run, its state and what it is
show     one run's record
rm       remove runs
gc       remove what no run needs: leavings of killed processes, checkpoints of finished runs, unused parents
verify   check every record, checkpoint and file against its checksum
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlm.runs.differences import differences, options_of
from dlm.runs.lease import is_held, lease
from dlm.runs.run import Run, temporary_folder
from dlm.runs.storage import read_json

# Raised while reading a record in which a field is missing or has another type.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
MINUTE = 60  # seconds after which a temporary folder must belong to a killed process


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m dlm.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")
    commands = parser.add_subparsers(required=True, metavar="list|show|rm|gc|verify")
    listing = commands.add_parser("list", help="every run, its state and what it is")
    listing.add_argument("--status", help="only those that are finished, failed, interrupted, running, killed, damaged")
    listing.set_defaults(command=lambda a: list_runs(a.runs, a.status))
    showing = commands.add_parser("show", help="one run's record, with the traceback of one that failed")
    showing.add_argument("run", help="an id or the beginning of it")
    showing.set_defaults(command=lambda a: show(a.runs, a.run))
    removing = commands.add_parser("rm", help="remove runs, unless a process works on them")
    removing.add_argument("run", nargs="+", help="an id or the beginning of it")
    removing.set_defaults(command=lambda a: remove(a.runs, a.run))
    collecting = commands.add_parser("gc", help="remove what no run needs")
    collecting.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    collecting.set_defaults(command=lambda a: collect(a.runs, a.dry_run))
    verifying = commands.add_parser(
        "verify", help="check every file against its checksum; exit code 1 if one is damaged"
    )
    verifying.set_defaults(command=lambda a: verify(a.runs))
    options = parser.parse_args(arguments)
    try:
        if not options.runs.is_dir():
            raise ValueError(f"--runs {str(options.runs)!r} is not a folder: name the one that holds the runs")
        return options.command(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def runs_in(folder: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(folder.glob("*/run.json"))]


def read(run: Run) -> tuple[str, dict[str, Any]]:
    """The state of a run and its record. The state is `killed` if the process of a running run is gone, and `damaged`
    if the record cannot be read."""
    try:
        record = run.record
        status = record["status"]
        line_of(record)
    except MALFORMED as error:
        return "damaged", {"damage": str(error) if isinstance(error, ValueError) else f"malformed record ({error!r})"}
    return ("killed" if status == "running" and not is_held(run.folder) else str(status)), record


def list_runs(folder: Path, only_status: str | None) -> int:
    """Print a row per run, with the options in which the runs differ; `only_status` selects runs of one state."""
    runs = [(run.id, *read(run)) for run in runs_in(folder)]
    lines = {name: line_of(record) for name, _, record in runs}
    differing = differences({name: record for name, status, record in runs if status != "damaged"})
    table = Table(title=Text(f"{len(runs)} runs in {folder}"))
    for column in ("run", "status", "ended", "what differs", "NELBO", "accuracy"):
        table.add_column(column, no_wrap=column in ("run", "status", "ended"), min_width=len(column))
    for name, status, _ in sorted(runs, key=lambda run: lines[run[0]].created):
        if only_status in (None, status):
            line = lines[name]
            details = line.damage or " ".join(f"{option}={value}" for option, value in differing[name].items())
            # As `Text`, because rich would read brackets in a plain string as markup.
            table.add_row(*map(Text, (name, status, line.ended, details, line.nelbo, line.accuracy)))
    Console().print(table)
    return 0


@dataclass(frozen=True)
class Line:
    """The row of a run in `list`, besides its id, state and options. `created` is in seconds since the epoch."""

    created: float
    ended: str
    nelbo: str
    accuracy: str
    damage: str


def line_of(record: dict[str, Any]) -> Line:
    """The row of a record. Raises one of `MALFORMED` if a field has another type."""
    options_of(record)
    train = record.get("train", {})
    bound = train.get("val/nelbo_final", train.get("val/nelbo"))
    tasks = (record.get("evaluation") or {}).get("dlm", {}).get("generation", [])
    return Line(
        float(record.get("created", 0)),
        time.strftime("%m-%d %H:%M", time.localtime(record["ended"])) if record.get("ended") else "",
        "" if bound is None else f"{bound:.3f}",
        f"{tasks[0]['accuracy']:.1%}" if tasks else "",
        record.get("damage", ""),
    )


def show(folder: Path, name: str) -> int:
    run = Run.load(name, folder)
    status, record = read(run)
    console = Console()
    console.print(f"run {run.id}: {status}, {run.folder}", markup=False)
    if record.get("error"):
        print(record["error"])
    console.print_json(json.dumps({name: value for name, value in record.items() if name != "error"}))
    return 0


def remove(folder: Path, names: list[str]) -> int:
    """Remove runs. All names are resolved before the first run is removed. A run is renamed before its files are
    deleted, so that it is never listed half deleted."""
    for run in [Run.load(name, folder) for name in names]:
        with lease(run.folder):
            renamed = run.folder.rename(temporary_folder(folder))
        shutil.rmtree(renamed)
        print(f"removed run {run.id}")
    return 0


def collect(folder: Path, dry_run: bool) -> int:
    total = 0
    for path in [*unneeded_paths(folder)]:
        size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
        total += size
        print(f"{'would remove' if dry_run else 'removed'} {path} ({size / 1e6:.1f} MB)")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"{total / 1e6:.1f} MB {'could be freed' if dry_run else 'freed'}")
    return 0


def unneeded_paths(folder: Path) -> Iterator[Path]:
    """The paths that no run needs. Nothing of a run in progress or with an unreadable record is among them."""
    yield from (path for path in folder.glob(".tmp/*") if time.time() - path.stat().st_mtime > MINUTE)
    records = {run: read(run) for run in runs_in(folder)}
    for run, (status, _) in records.items():
        if status == "damaged" or is_held(run.folder):
            continue
        yield from run.temporary_files()
        if status == "finished" and run.checkpoint.parent.exists():
            yield run.checkpoint.parent
    if any(status in ("damaged", "running") for status, _ in records.values()):
        return  # the parents in use are unknown, or may change at this moment
    used = {record["parent"]["fingerprint"] for _, record in records.values() if "parent" in record}
    yield from (path for path in folder.glob(".parents/*") if path.name[:16] not in used)


def verify(folder: Path) -> int:
    """Print every damaged file. Returns the exit code: 1 if there is one."""
    runs = runs_in(folder)
    problems = [problem for run in runs for problem in problems_of(run)] + problems_of_parents(folder)
    for problem in problems:
        print(problem)
    print(f"{len(runs)} runs, {len(problems)} problems")
    return 1 if problems else 0


def problems_of(run: Run) -> Iterator[str]:
    """A line for every damaged file of a run."""
    try:
        damaged = run.damaged()
    except MALFORMED as error:
        yield str(error) if isinstance(error, ValueError) else f"{run.record_path} is malformed ({error!r})"
        return
    for name in damaged:
        yield f"{run.folder / name} is not what was written (checksum)"
    for path in run.checkpoint.parent.glob("*.ckpt"):
        try:
            with zipfile.ZipFile(path) as archive:
                problem = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            problem = str(error)
        if problem:
            yield f"{path} is damaged ({problem})"


def problems_of_parents(folder: Path) -> list[str]:
    """A line for every damaged file of cached parent measurements."""
    problems = []
    for path in sorted(folder.glob(".parents/*.json")):
        try:
            read_json(path)
        except ValueError as error:
            problems.append(f"{path} is damaged ({error}): delete it, it is measured again")
    return problems


if __name__ == "__main__":
    raise SystemExit(main())
