"""What is done to a micro-batch of training before the network reads it: a pure function of the batch and its number.

It needs no weights, unless there is a rollout, so it may be done ahead of the step in another process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dlm.block_schedule.base import BlockSchedule
from dlm.conversion.objective import Objective
from dlm.conversion.pieces import lay_out_pieces
from dlm.conversion.prepare import corrupt
from dlm.conversion.schedule import Schedules
from dlm.masking.base import Masking
from dlm.model.layout import Layout
from dlm.rollout.base import Rollout
from dlm.types import Batch, Prepared, generator

TRAIN_STREAM = 1


@dataclass(frozen=True)
class Preparation:
    """Corrupts a batch and lays it out, in at most `pieces` pieces, for an objective. `layout` is the denoiser itself
    where there is a rollout."""

    layout: Layout
    masking: Masking
    objective: Objective
    seed: int
    pieces: int = 1
    rollout: Rollout | None = None
    schedules: Schedules | None = None
    block_schedule: BlockSchedule | None = None

    def __call__(self, batch: Batch, number: int, of: int, rank: int) -> list[Prepared]:
        """Prepare micro-batch `number` of the `of` that the process of a `rank` trains on."""
        noise = generator(self.seed, TRAIN_STREAM, rank, number)
        return self.prepare(self.scheduled(number / of, noise), batch, noise)

    def scheduled(self, progress: float, noise: torch.Generator) -> Layout:
        """Set the scheduled numbers to their values at `progress`, and return the layout at the block size of this
        micro-batch."""
        if self.schedules:
            self.schedules(progress)
        return self.layout.at(self.block_schedule(progress, noise)) if self.block_schedule else self.layout

    def prepare(self, layout: Layout, batch: Batch, noise: torch.Generator) -> list[Prepared]:
        """Corrupt a batch, replace it by the model's own rollout if there is one, and lay it out for the objective."""
        batch = layout.scorable(batch)
        noised = corrupt(layout, self.masking, batch, noise)
        if self.rollout:
            batch, noised = self.rollout(layout, batch, noised, noise)
        return lay_out_pieces(layout, batch, noised, self.objective, self.pieces)


@dataclass(frozen=True)
class Ahead:
    """Prepares micro-batches in a process that loads data, which gets no weights."""

    preparation: Preparation
    of: int
    rank: int

    def __call__(self, batch: Batch, number: int) -> Parcel:
        return Parcel(self.preparation(batch, number, self.of, self.rank))

    def __getstate__(self) -> dict:
        """What another process gets."""
        layout = self.preparation.layout.without_model()
        return vars(self) | {"preparation": replace(self.preparation, layout=layout)}


class Parcel:
    """A prepared micro-batch on its way from the process that loads data. It is not one of the containers in which
    Lightning converts tensors to the precision of the training."""

    def __init__(self, pieces: list[Prepared]):
        self.pieces = pieces

    def pin_memory(self) -> Parcel:
        """The same in memory from which a GPU copies without waiting. A loader calls this."""
        return Parcel([piece.pin_memory() for piece in self.pieces])
