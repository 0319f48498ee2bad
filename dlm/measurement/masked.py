"""The frequency with which a run's masking scheme hides each position of a block (Efficient-DLM, Figure 7)."""

from __future__ import annotations

import torch

from dlm.masking.base import Units
from dlm.measurement.base import Measurement
from dlm.types import Batch, generator


class Masked(Measurement):
    """Masks `draws` blocks as in training, each at its own noise level."""

    def __init__(self, draws: int):
        if draws < 1:
            raise ValueError(f"measurement.draws {draws} must be at least 1")
        self.draws = draws

    def __call__(self, subject):
        """The masking `probability` of each position, and the same given the number of hidden positions: `by_hidden[k]`
        for k of them (None: k never occurred)."""
        size = subject.config.block_size
        x0 = torch.zeros(self.draws, size, dtype=torch.long)
        offset, row = torch.arange(size).expand_as(x0), torch.arange(self.draws)[:, None].expand_as(x0)
        batch = Batch(x0, torch.ones_like(x0, dtype=torch.bool), torch.zeros_like(x0), offset)
        units = Units(row, offset, torch.full_like(x0, size))
        masked = subject.masking(batch, units, 1, generator(0)).masked[:, :size]  # of the first view
        hidden = masked.sum(1)
        by_hidden = {k: masked[hidden == k].double().mean(0).tolist() for k in hidden.unique().tolist()}
        return {
            "block_size": size,
            "probability": masked.double().mean(0).tolist(),
            "by_hidden": [by_hidden.get(k) for k in range(size + 1)],
        }
