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
from dlm.runs.run import Run, aside
from dlm.runs.storage import read_json

# What reading a record raises where a field is missing or has another type.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
MINUTE = 60  # seconds after which what is aside belongs to a process that was killed


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
    chosen = parser.parse_args(arguments)
    try:
        if not chosen.runs.is_dir():
            raise ValueError(f"--runs {str(chosen.runs)!r} is not a folder: name the one that holds the runs")
        return chosen.command(chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def runs_in(folder: Path) -> list[Run]:
    return [Run(path.parent) for path in sorted(folder.glob("*/run.json"))]


def read(run: Run) -> tuple[str, dict[str, Any]]:
    """The state of a run and its record: `killed` where the process that worked on it is gone, `damaged` where the
    record cannot be read."""
    try:
        record = run.record
        status = record["status"]
        line_of(record)
    except MALFORMED as error:
        return "damaged", {"damage": str(error) if isinstance(error, ValueError) else f"malformed record ({error!r})"}
    return ("killed" if status == "running" and not is_held(run.folder) else str(status)), record


def list_runs(folder: Path, wanted: str | None) -> int:
    """A row per run; of the options only those that differ among the runs."""
    found = [(run.id, *read(run)) for run in runs_in(folder)]
    lines = {name: line_of(record) for name, _, record in found}
    differing = differences({name: record for name, status, record in found if status != "damaged"})
    table = Table(title=Text(f"{len(found)} runs in {folder}"))
    for column in ("run", "status", "ended", "what differs", "NELBO", "accuracy"):
        table.add_column(column, no_wrap=column in ("run", "status", "ended"), min_width=len(column))
    for name, status, _ in sorted(found, key=lambda run: lines[run[0]].created):
        if wanted in (None, status):
            line = lines[name]
            what = line.damage or " ".join(f"{option}={value}" for option, value in differing[name].items())
            # Text: what stands in brackets would be taken for markup.
            table.add_row(*map(Text, (name, status, line.ended, what, line.nelbo, line.accuracy)))
    Console().print(table)
    return 0


@dataclass(frozen=True)
class Line:
    """What `list` says of a run."""

    created: float
    ended: str
    nelbo: str
    accuracy: str
    damage: str


def line_of(record: dict[str, Any]) -> Line:
    """One of `MALFORMED` where a field has another type."""
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
    """Every run is found before the first is removed, and is put aside first, so that none is ever half there."""
    for run in [Run.load(name, folder) for name in names]:
        with lease(run.folder):
            gone = run.folder.rename(aside(folder))
        shutil.rmtree(gone)
        print(f"removed run {run.id}")
    return 0


def collect(folder: Path, dry_run: bool) -> int:
    total = 0
    for path in [*rubbish(folder)]:
        size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
        total += size
        print(f"{'would remove' if dry_run else 'removed'} {path} ({size / 1e6:.1f} MB)")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"{total / 1e6:.1f} MB {'could be freed' if dry_run else 'freed'}")
    return 0


def rubbish(folder: Path) -> Iterator[Path]:
    """What no run needs. A run that is worked on or whose record cannot be read is left alone."""
    yield from (path for path in folder.glob(".tmp/*") if time.time() - path.stat().st_mtime > MINUTE)
    records = {run: read(run) for run in runs_in(folder)}
    for run, (status, _) in records.items():
        if status == "damaged" or is_held(run.folder):
            continue
        yield from run.leavings()
        if status == "finished" and run.checkpoint.parent.exists():
            yield run.checkpoint.parent
    if any(status in ("damaged", "running") for status, _ in records.values()):
        return  # which parents are in use cannot be known, or may change at this moment
    used = {record["parent"]["fingerprint"] for _, record in records.values() if "parent" in record}
    yield from (path for path in folder.glob(".parents/*") if path.name[:16] not in used)


def verify(folder: Path) -> int:
    """Print every damaged file; 1 where there is one."""
    runs = runs_in(folder)
    problems = [problem for run in runs for problem in problems_of(run)] + problems_of_parents(folder)
    for problem in problems:
        print(problem)
    print(f"{len(runs)} runs, {len(problems)} problems")
    return 1 if problems else 0


def problems_of(run: Run) -> Iterator[str]:
    """What is damaged of a run."""
    try:
        sealed = run.damaged()
    except MALFORMED as error:
        yield str(error) if isinstance(error, ValueError) else f"{run.record_path} is malformed ({error!r})"
        return
    for name in sealed:
        yield f"{run.folder / name} is not what was written (checksum)"
    for path in run.checkpoint.parent.glob("*.ckpt"):
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (OSError, zipfile.BadZipFile) as error:
            broken = str(error)
        if broken:
            yield f"{path} is damaged ({broken})"


def problems_of_parents(folder: Path) -> list[str]:
    """What is damaged of what was measured of parents."""
    found = []
    for path in sorted(folder.glob(".parents/*.json")):
        try:
            read_json(path)
        except ValueError as error:
            found.append(f"{path} is damaged ({error}): delete it, it is measured again")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
