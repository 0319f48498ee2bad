"""What happens to a batch on the CPU before a step: noise is drawn, the streams are laid out, what nobody reads is left
out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dlm.denoiser import Denoiser
from dlm.masking.base import Masking
from dlm.trim import trim
from dlm.types import Batch, ModelInputs, Movable, Scored


@dataclass(frozen=True)
class Prepared(Movable):
    """A corrupted batch, ready for the network. `num_tokens` is the size of the batch and `num_maskable` the number of
    tokens it could have scored, both once for each of its `views`."""

    inputs: ModelInputs
    scored: Scored
    num_tokens: int
    num_maskable: int
    views: int = 1

    def to(self, *args, **kwargs):
        return Prepared(
            self.inputs.to(*args, **kwargs),
            self.scored.to(*args, **kwargs),
            self.num_tokens,
            self.num_maskable,
            self.views,
        )


def prepare(denoiser: Denoiser, masking: Masking, batch: Batch, noise: torch.Generator) -> Prepared:
    """Corrupt a batch and lay out for the network what it has to read (on the CPU)."""
    batch = denoiser.scorable(batch)
    noised = masking(batch, denoiser.pattern.units(batch), denoiser.mask_id, noise)
    inputs, scored = denoiser.inputs(batch, noised)
    inputs = trim(denoiser.pattern, inputs, few_shapes=denoiser.compiles)
    inputs = replace(inputs, layout=inputs.rows.layout())
    views = masking.views
    return Prepared(inputs, scored, views * batch.x0.numel(), views * int(batch.maskable.sum()), views)
