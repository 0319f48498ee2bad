"""Leases of runs. Any number of processes, on any number of machines that share the folder, may work on the same sweep:
a process works on a run only while it holds the run's lease, and otherwise continues with the next run.

The lease is a file that its holder touches (filelock's `SoftFileLease`). A dead holder on this machine is detected at
once by its process id; one on another machine, after `LEASE_SECONDS` without a touch. The waiting process measures this
on its own monotonic clock, so clocks that jump or differ cannot end a lease.
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
BUSY = 75  # the exit code if another process works on the run: EX_TEMPFAIL of sysexits.h


class Busy(ValueError):
    """Another process works on the run."""


@contextmanager
def lease(folder: Path, seconds: float = LEASE_SECONDS) -> Iterator[SoftFileLease]:
    """Hold the lease of a folder for `seconds` after each touch. Raises `Busy` if another process holds it. Losing the
    lease (the machine slept for longer) interrupts this process, because another may have taken over the run."""
    claim = new_claim(folder, seconds)
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


def new_claim(folder: Path, seconds: float = LEASE_SECONDS) -> SoftFileLease:
    return SoftFileLease(
        folder / NAME,
        lease_duration=seconds,
        thread_local=False,
        on_compromise=lambda _: os.kill(os.getpid(), signal.SIGINT),
    )


@cache
def hostname() -> str:
    """This machine's name in leases (with the container's process namespace, if any)."""
    with tempfile.TemporaryDirectory() as folder, new_claim(Path(folder)) as claim:
        return claim.owner.hostname


def is_marked(folder: Path) -> bool:
    """Whether a process holds the lease of a folder or died while holding it."""
    return (folder / NAME).exists()


def is_held(folder: Path) -> bool:
    """Whether a process, not known to be dead, holds the lease of a folder."""
    if not is_marked(folder):
        return False
    claim = new_claim(folder)
    try:
        claim.acquire(timeout=0)
    except Timeout:
        return True
    claim.release()
    return False
