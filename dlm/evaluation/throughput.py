"""Tokens per second of several models, measured in turns in one process: the machine's load affects all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from dlm.evaluation.timing import Arm, clock_of
from dlm.evaluation.timing import interleaved as seconds_of


def interleaved(contestants: dict[str, Callable[[], int]], repeats: int, device: torch.device) -> dict[str, float]:
    """The median tokens/s of each contestant. A call of it decodes and returns the number of generated tokens.

    With one CPU thread, seconds are CPU time, which excludes other work of the machine, such as another run of a study.
    Otherwise they are wall-clock time.
    """
    use_cpu_time = device.type == "cpu" and torch.get_num_threads() == 1
    tokens: dict[str, int] = {}

    def counted(name: str, run: Callable[[], int]) -> Callable[[], None]:
        def once() -> None:
            tokens[name] = run()

        return once

    arms = {name: Arm(counted(name, run)) for name, run in contestants.items()}
    times = seconds_of(arms, repeats, 1, clock_of(device, "cpu" if use_cpu_time else "wall"))
    return {name: statistics.median(tokens[name] / t for t in seconds) for name, seconds in times.items()}
