"""Who works on a run. Any number of processes, on any number of machines that share the folder, may be given the same
sweep: each run is worked on by the one that holds its lease, and the others go on with the next.

The lease is a file that its holder touches (filelock's `SoftFileLease`). A holder that died on this machine is known at
once by its process id; one on another machine by `LEASE_SECONDS` without a touch, by the watcher's own monotonic clock,
so no clock that jumps or differs can end a lease.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import SoftFileLease, Timeout

NAME = ".lease"
LEASE_SECONDS = 60.0
BUSY = 75  # the exit code of a command whose run another process works on: EX_TEMPFAIL of sysexits.h


class Busy(ValueError):
    """Another process works on the run."""


@contextmanager
def lease(folder: Path, seconds: float = LEASE_SECONDS) -> Iterator[SoftFileLease]:
    """Hold the lease of a folder; `Busy` where another process does. A lease that is lost (a machine that slept for
    longer than it lasts) interrupts the process: another one works on the run now."""
    claim = claim_on(folder, seconds)
    owner = claim.owner
    same_host = owner is None or owner.hostname == hostname()
    try:
        claim.acquire(timeout=0 if same_host else seconds * 1.2, poll_interval=min(1.0, seconds / 4))
    except Timeout:
        raise Busy(
            f"run {folder.name} is being worked on by process {owner.pid} on {owner.hostname}"
            if owner
            else f"run {folder.name} is being worked on by another process"
        ) from None
    try:
        yield claim
    finally:
        claim.release()


def claim_on(folder: Path, seconds: float = LEASE_SECONDS) -> SoftFileLease:
    return SoftFileLease(
        folder / NAME,
        lease_duration=seconds,
        thread_local=False,
        on_compromise=lambda _: os.kill(os.getpid(), signal.SIGINT),
    )


@cache
def hostname() -> str:
    """This machine's name as leases have it (with the container's process namespace where there is one)."""
    with tempfile.TemporaryDirectory() as folder, claim_on(Path(folder)) as claim:
        return claim.owner.hostname


def is_marked(folder: Path) -> bool:
    """Whether a process holds the lease of a folder, or died with it."""
    return (folder / NAME).exists()


def is_held(folder: Path) -> bool:
    """Whether a process that may be alive holds the lease of a folder."""
    if not is_marked(folder):
        return False
    claim = claim_on(folder)
    try:
        claim.acquire(timeout=0)
    except Timeout:
        return True
    claim.release()
    return False
