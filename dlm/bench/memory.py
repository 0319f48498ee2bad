"""Peak memory on a CPU: that of a process which does nothing else.

The kernel's high-water mark of resident memory is set back right before the work, so it is all that the process holds
meanwhile: libraries, weights, gradients, and what the work itself needs. Linux.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measurable() -> bool:
    return RESET.exists()


def peak_resident(run: Callable[[], object]) -> int:
    """The most bytes that were resident in this process during a call."""
    RESET.write_text("5")
    run()
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_fresh_process(function: Callable[..., int], *args: Any) -> int:
    """What a function returns in a new Python process. Forked, it would hold what this one has left over."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
