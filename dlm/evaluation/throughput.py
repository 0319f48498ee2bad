"""Tokens per second of two models, measured in turns in one process so that the machine's load hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(contestants: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """The median tokens/s of each contestant; each call decodes something and returns how many tokens it made."""
    for run in contestants.values():
        run()  # warm-up
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            begin = time.perf_counter()
            tokens = run()
            rates[name].append(tokens / (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in rates.items()}
