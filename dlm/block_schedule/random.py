"""A block size drawn for every batch, so that one model decodes at any of them."""

from __future__ import annotations

import torch

from dlm.block_schedule.base import BlockSchedule


class Random(BlockSchedule):
    """Uniform over `sizes`."""

    def __call__(self, progress, generator):
        return self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]
