"""Block sizes one after another: growth (NBDiff), warm-up, stable phase and decay (LLaDA 2.0), a jump (SDAR)."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from dlm.block_schedule.base import BlockSchedule


class Stages(BlockSchedule):
    """`sizes` one after another, each for its share of training; `shares` are relative, and equal by default."""

    def __init__(self, sizes: list[int], shares: list[float] | None = None):
        super().__init__(sizes)
        shares = shares or [1.0] * len(sizes)
        if len(shares) != len(sizes) or min(shares) <= 0:
            raise ValueError(f"block_schedule.shares {shares} must be one positive number for each of sizes {sizes}")
        self.ends = [end / sum(shares) for end in accumulate(shares)]

    def __call__(self, progress, generator):
        return self.sizes[min(bisect_right(self.ends, progress), len(self.sizes) - 1)]
