"""What a run of the tests logged offline."""

import time
from pathlib import Path

from dlm.workspace.records import Logged, read


def read_all(run_folder: Path) -> list[Logged]:
    """Everything that a run logged offline, in the order in which it was."""
    return [read_whole(folder) for folder in sorted((run_folder / "wandb").glob("offline-run-*"))]


def read_whole(folder: Path) -> Logged:
    """The same, when its last record is written: another process does that, and nobody waits for it."""
    for _ in range(200):
        if "exit" in (found := read(folder)).kinds:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{folder} does not end: it has {found.kinds}")
