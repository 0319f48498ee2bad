"""Peak memory on a CPU, measured in a process that does nothing else. Linux only.

The kernel's high-water mark of resident memory is reset right before the work. It therefore counts all memory that the
process holds during the work: libraries, weights, gradients, and the work's own tensors.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measurable() -> bool:
    """Whether the kernel lets a process reset its high-water mark."""
    return RESET.exists()


def peak_resident(run: Callable[[], object]) -> int:
    """The largest number of bytes resident in this process during a call."""
    RESET.write_text("5")
    run()
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_fresh_process(function: Callable[..., int], *args: Any) -> int:
    """The function's result in a new Python process. A forked one would inherit the memory of this process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
