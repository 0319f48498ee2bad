"""What a study's jobs do in tests: as much of the real ones as a study looks at. Importable, as jobs are processes."""

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

from dlm.runs.lease import BUSY


def trained(folder: Path, settings: dict, diverged: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"status": "finished", "diverged": diverged, "evaluation": {"settings": settings}}
    (folder / "run.json").write_text(json.dumps(record))


def measured(folder: Path, files: list[str]) -> None:
    for name in files:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")


def fail() -> None:
    print("error: bad")
    raise SystemExit(1)


def trained_the_second_time(folder: Path, settings: dict, diverged: bool) -> None:
    """The first time, another process works on the run."""
    lease = folder / ".lease"
    if lease.exists():
        return trained(folder, settings, diverged)
    lease.parent.mkdir(parents=True, exist_ok=True)
    lease.touch()
    print("busy: run is being worked on by process 1")
    raise SystemExit(BUSY)


def last_a_moment() -> None:
    """Says when it began and ended."""
    began = time.time()
    time.sleep(0.2)
    print(began, time.time())


def last() -> None:
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("clean")


def describe() -> None:
    """Whether it leads a session, how it would start a process, and whether it has what jobs share."""
    print(os.getsid(0) == os.getpid(), multiprocessing.get_start_method(allow_none=True), "lightning" in sys.modules)
