"""Times of several arms, taken in turns so that the machine's load and temperature affect all alike.

`torch.utils.benchmark.Timer` times one statement after another, so that a change of load between two of them looks like
a difference. It has no untimed set-up before each run, no clock of another process, and no ratios per round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Arm:
    """One contestant of a comparison. `setup` is called before every `run`, outside the measured time."""

    run: Callable[[], object]
    setup: Callable[[], object] = lambda: None

    def seconds(self, clock: Clock) -> float:
        """The duration of one run."""
        begin = clock()
        self.run()
        return clock() - begin


@dataclass(frozen=True)
class Elsewhere(Arm):
    """An arm in another process: `run` returns the seconds that it took there, by that process's own clock."""

    run: Callable[[], float]

    def seconds(self, clock: Clock) -> float:
        return self.run()


def clock_of(device: torch.device, name: str = "wall") -> Clock:
    """A clock in seconds that first waits for the device. `wall` is real time; `cpu` is the CPU time of all threads of
    this process, which excludes other processes. `ValueError` for another name, and for `cpu` on a GPU."""
    if name not in CLOCKS:
        raise ValueError(f"clock {name!r} is unknown: choose one of {', '.join(CLOCKS)}")
    if device.type != "cuda":
        return CLOCKS[name]
    if name != "wall":
        raise ValueError(f"clock {name!r} does not see what device {str(device)!r} does: choose wall")

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


def interleaved(arms: dict[str, Arm], repeats: int, warmup: int, clock: Clock) -> dict[str, list[float]]:
    """The seconds of every run, in the order A B C A B C …: the n-th entry of each list is from round n. The first
    `warmup` rounds are discarded."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warmup + repeats):
        for name, arm in arms.items():
            arm.setup()
            seconds = arm.seconds(clock)
            if turn >= warmup:
                times[name].append(seconds)
    return times


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and range of the ratio within each round, whose load affects both arms alike. A ratio of medians would
    lose this."""
    return spread(a / b for a, b in zip(numerator, denominator, strict=True))


def with_range(value: dict[str, float], digits: int = 2) -> str:
    """A median with its range as text: `2.41 (2.30–2.55)`."""
    return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}–{value['max']:.{digits}f})"
