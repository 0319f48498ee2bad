"""Tokens per second of several models, measured in turns in one process so that the machine's load hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from dlm.evaluation.timing import Arm, clock_of
from dlm.evaluation.timing import interleaved as seconds_of


def interleaved(contestants: dict[str, Callable[[], int]], repeats: int, device: torch.device) -> dict[str, float]:
    """The median tokens/s of each contestant; each call decodes something and returns how many tokens it made.

    With one CPU thread the seconds are those that the process computes, so that what else the machine does, such as
    another run of a study, is not counted. Otherwise they are those of the clock on the wall.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    made: dict[str, int] = {}

    def counted(name: str, run: Callable[[], int]) -> Callable[[], None]:
        def once() -> None:
            made[name] = run()

        return once

    arms = {name: Arm(counted(name, run)) for name, run in contestants.items()}
    times = seconds_of(arms, repeats, 1, clock_of(device, "cpu" if alone else "wall"))
    return {name: statistics.median(made[name] / t for t in seconds) for name, seconds in times.items()}
