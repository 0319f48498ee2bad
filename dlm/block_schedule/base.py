"""The block size over the course of training; decoding has the last one's, `block_size`."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class BlockSchedule(ABC):
    """Contract: every size divides the row length (`sizes` are all that there can be)."""

    sizes: list[int]

    def __init__(self, sizes: list[int]):
        if not sizes or min(sizes) < 1:
            raise ValueError(f"block_schedule.sizes {sizes} must be block sizes of at least 1")
        self.sizes = sizes

    @abstractmethod
    def __call__(self, progress: float, generator: torch.Generator) -> int:
        """The block size of a batch, `progress` in [0, 1) through training."""
