"""The block size over the course of training; decoding uses `block_size`."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class BlockSchedule(ABC):
    """Contract: it returns only values of `sizes`, and each of them divides the row length."""

    sizes: list[int]

    def __init__(self, sizes: list[int]):
        if not sizes or min(sizes) < 1:
            raise ValueError(f"block_schedule.sizes {sizes} must be block sizes of at least 1")
        self.sizes = sizes

    @abstractmethod
    def __call__(self, progress: float, generator: torch.Generator) -> int:
        """The block size of a batch; `progress` in [0, 1) is the fraction of training that is done."""
